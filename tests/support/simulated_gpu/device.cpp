// A "cuda" device for a CPU build of torch: real numbers in the host's memory, on tensors whose device is cuda:0.
//
// Operators without a kernel of their own run the CPU's, after a check that no CPU tensor is among their inputs. Fresh
// memory is full of NaNs. What would wait for the device raises while the calling thread captures a graph.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <malloc.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace {

using at::Tensor;

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet ON_DEVICE(c10::DispatchKey::CUDA);

std::atomic<int64_t> operators{0}, allocated{0}, peak{0};
// As with cudaStreamCaptureModeThreadLocal: what another thread does meanwhile is its own affair.
thread_local bool capturing = false;

// ---- memory --------------------------------------------------------------------------------------------------------

void release(void *memory) {
    if (memory) allocated -= malloc_usable_size(memory);
    std::free(memory);
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        void *memory = bytes ? std::malloc(bytes) : nullptr;
        if (memory) {
            std::memset(memory, 0xff, bytes);  // NaN in every floating type
            const int64_t now = allocated += malloc_usable_size(memory);
            int64_t highest = peak;
            while (highest < now && !peak.compare_exchange_weak(highest, now)) {
            }
        }
        return {memory, memory, &release, DEVICE};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void *target, const void *source, size_t bytes) const override {
        std::memcpy(target, source, bytes);
    }
};

Allocator allocator;

// The same memory as a CPU tensor.
Tensor on_host(const Tensor &tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    const c10::Storage &owner = tensor.storage();
    c10::Storage storage(c10::Storage::use_byte_size_t(), owner.nbytes(),
                         c10::DataPtr(owner.mutable_data(), c10::Device(c10::kCPU)), nullptr, false);
    Tensor made = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    return made;
}

Tensor on_device(const Tensor &tensor) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    Tensor made = at::detail::empty_strided_generic(
        tensor.sizes(), tensor.strides(), &allocator, ON_DEVICE, tensor.scalar_type());
    on_host(made).copy_(tensor);
    return made;
}

// ---- what torch asks of a device -----------------------------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
    static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
    c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
    c10::Device getDevice() const override { return DEVICE; }
    c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
    c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
    c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
    void record(void **event, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override {
        static char recorded;  // events are never asked for a time here; they only have to be there
        *event = &recorded;
    }
    void block(void *, const c10::Stream &) const override {}
    bool queryEvent(void *) const override { return true; }
    void synchronizeEvent(void *) const override {}
    void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Generator final : c10::GeneratorImpl {
    at::Generator inner = at::detail::createCPUGenerator();
    Generator() : c10::GeneratorImpl(DEVICE, ON_DEVICE) {}
    void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
    void set_offset(uint64_t) override {}
    uint64_t get_offset() const override { return 0; }
    uint64_t current_seed() const override { return inner.current_seed(); }
    uint64_t seed() override { return inner.seed(); }
    void set_state(const c10::TensorImpl &state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
    c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
        return inner.unsafeGetGeneratorImpl()->get_state();
    }
    Generator *clone_impl() const override {
        auto *made = new Generator();
        made->inner = inner.clone();
        return made;
    }
    static c10::DeviceType device_type() { return c10::DeviceType::CUDA; }
};

at::Generator &default_generator() {
    static at::Generator generator = at::make_generator<Generator>();
    return generator;
}

struct Hooks final : at::CUDAHooksInterface {
    explicit Hooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasCUDA() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex current_device() const override { return 0; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    int getNumGPUs() const override { return 1; }
    const at::Generator &getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
    // The first one that Python asks for is the default one, for torch.cuda.default_generators.
    at::Generator getNewGenerator(c10::DeviceIndex) const override {
        static bool is_first = true;
        return std::exchange(is_first, false) ? default_generator() : at::make_generator<Generator>();
    }
    c10::Allocator *getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
    c10::Allocator *getCUDADeviceAllocator() const override { return &allocator; }
    bool isPinnedPtr(const void *) const override { return false; }
    void deviceSynchronize(c10::DeviceIndex) const override {}
};

// ---- what CUDA refuses ---------------------------------------------------------------------------------------------

// Indices may lie on the host, as with CUDA.
const std::unordered_set<std::string> MIXING = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl", "aten::_index_put_impl_"};

Tensor checked(const std::string &name, const Tensor &tensor) {
    if (tensor.defined() && tensor.device().is_cpu()) {
        TORCH_CHECK(tensor.dim() == 0 || MIXING.count(name), "simulated GPU: ", name,
                    ": Expected all tensors to be on the same device, but found a CPU tensor of shape ",
                    tensor.sizes());
        TORCH_CHECK(!capturing || tensor.unsafeGetTensorImpl()->is_wrapped_number(), "simulated GPU: ", name,
                    ": a CPU tensor is read while a graph is captured");
    }
    return on_host(tensor);
}

// ---- products ------------------------------------------------------------------------------------------------------

// The host multiplies 16-bit matrices eight times as slowly as float32 ones, and a GPU adds up in float32 as well.
Tensor factor(const char *name, const Tensor &tensor, const Tensor &other) {
    TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), "simulated GPU: ", name,
                ": expected both factors to have the same type, but got ", tensor.scalar_type(), " and ",
                other.scalar_type());
    const Tensor given = checked(name, tensor);
    return given.itemsize() == 2 ? given.to(at::kFloat) : given;
}

Tensor product(const Tensor &found, const Tensor &factor) {
    ++operators;
    return on_device(found.to(factor.scalar_type()));
}

Tensor mm(const Tensor &self, const Tensor &other) {
    return product(at::mm(factor("mm", self, other), factor("mm", other, self)), self);
}

Tensor bmm(const Tensor &self, const Tensor &other) {
    return product(at::bmm(factor("bmm", self, other), factor("bmm", other, self)), self);
}

Tensor addmm(const Tensor &self, const Tensor &first, const Tensor &second, const at::Scalar &beta,
             const at::Scalar &alpha) {
    const Tensor added = factor("addmm", self, first);
    const Tensor left = factor("addmm", first, second), right = factor("addmm", second, first);
    return product(at::addmm(added, left, right, beta, alpha), first);
}

// ---- memory, copies, views -----------------------------------------------------------------------------------------

using Dtype = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Device = std::optional<at::Device>;
using Format = std::optional<at::MemoryFormat>;

Tensor empty(c10::IntArrayRef sizes, Dtype dtype, Layout, Device, std::optional<bool>, Format format) {
    return at::detail::empty_generic(sizes, &allocator, ON_DEVICE, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, Dtype dtype, Layout, Device,
                     std::optional<bool>) {
    return at::detail::empty_strided_generic(sizes, strides, &allocator, ON_DEVICE, c10::dtype_or_default(dtype));
}

Tensor &copy_(Tensor &self, const Tensor &source, bool) {
    ++operators;
    TORCH_CHECK(!capturing || (self.is_cuda() && source.is_cuda()),
                "simulated GPU: a copy between host and device while a graph is captured");
    on_host(self).copy_(on_host(source));
    return self;
}

Tensor copy_from(const Tensor &self, const Tensor &target, bool) {
    on_host(target).copy_(on_host(self));
    return target;
}

const Tensor &resize_(const Tensor &self, c10::IntArrayRef sizes, Format) {
    auto *storage = self.storage().unsafeGetStorageImpl();
    const size_t needed = (c10::multiply_integers(sizes) + self.storage_offset()) * self.itemsize();
    if (storage->nbytes() < needed) {
        c10::DataPtr grown = allocator.allocate(needed);
        if (storage->nbytes()) std::memcpy(grown.get(), storage->data(), storage->nbytes());
        storage->set_data_ptr_noswap(std::move(grown));
        storage->set_nbytes(needed);
    }
    self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
    return self;
}

Tensor copy_from_and_resize(const Tensor &self, const Tensor &target) {
    if (target.sizes() != self.sizes()) resize_(target, self.sizes(), std::nullopt);
    return copy_from(self, target, false);
}

Tensor &set_storage_offset(Tensor &self, at::Storage storage, int64_t offset, c10::IntArrayRef sizes,
                           c10::IntArrayRef strides) {
    auto *implementation = self.unsafeGetTensorImpl();
    implementation->set_storage_keep_dtype(std::move(storage));
    implementation->set_sizes_and_strides(sizes, strides, offset);
    return self;
}

Tensor &set_storage(Tensor &self, at::Storage storage) {
    const int64_t count = storage.nbytes() / self.itemsize();
    return set_storage_offset(self, std::move(storage), 0, {count}, {1});
}

Tensor &set_tensor(Tensor &self, const Tensor &source) {
    return set_storage_offset(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// ---- all other operators -------------------------------------------------------------------------------------------

// Their result, or its shape, is needed on the host.
const std::unordered_set<std::string> WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal",
    "aten::_unique2"};

at::Generator on_host(const at::Generator &generator) {
    TORCH_CHECK(generator.device().is_cuda(),
                "simulated GPU: Expected a 'cuda' device type for generator but found '", generator.device().type(),
                "'");
    return static_cast<Generator *>(generator.unsafeGetGeneratorImpl())->inner;
}

// An argument as the CPU's kernel takes it.
c10::IValue on_host(const std::string &name, const c10::Argument &argument, const c10::IValue &value) {
    if (value.isTensor()) return checked(name, value.toTensor());
    if (value.isTensorList()) {
        std::vector<Tensor> tensors;
        for (const Tensor &tensor : value.toTensorVector()) tensors.push_back(checked(name, tensor));
        return tensors;
    }
    if (value.isOptionalTensorList()) {
        c10::List<std::optional<Tensor>> tensors;
        for (const std::optional<Tensor> &tensor : value.toOptionalTensorList())
            tensors.push_back(tensor ? std::optional<Tensor>(checked(name, *tensor)) : std::nullopt);
        return tensors;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(c10::kCPU);
    if (value.isGenerator()) return on_host(value.toGenerator());
    if (value.isNone() && argument.type()->str() == "Generator?") return on_host(default_generator());
    return value;
}

// A result of the CPU's kernel as the caller expects it: an argument that was written, or a tensor on the device.
c10::IValue returned(const c10::OperatorHandle &op, const c10::Argument &result, const c10::IValue &value,
                     const std::vector<c10::IValue> &given) {
    const auto &arguments = op.schema().arguments();
    if (const auto *alias = result.alias_info()) {
        TORCH_CHECK(alias->isWrite(), "simulated GPU: ", op.schema().name(),
                    " returns a view; it needs a kernel of its own");
        for (size_t index = 0; index < given.size(); ++index) {
            const auto *source = arguments[index].alias_info();
            if (source && *source == *alias) return given[index];
        }
    }
    if (value.isTensor()) return on_device(value.toTensor());
    if (value.isTensorList()) {
        std::vector<Tensor> tensors;
        for (const Tensor &tensor : value.toTensorVector()) tensors.push_back(on_device(tensor));
        return tensors;
    }
    return value;
}

void run_on_host(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    ++operators;
    const auto &schema = op.schema();
    const auto &arguments = schema.arguments();
    const std::string &name = schema.name();
    TORCH_CHECK(!capturing || !WAITING.count(name), "simulated GPU: ", name,
                " waits for the device while a graph is captured");
    const size_t begin = stack->size() - arguments.size();
    const std::vector<c10::IValue> given(stack->begin() + begin, stack->end());
    std::vector<std::pair<Tensor, Tensor>> outputs;  // a kernel may resize them, which memory of ours cannot be
    for (size_t index = 0; index < given.size(); ++index) {
        c10::IValue &value = (*stack)[begin + index];
        value = on_host(name, arguments[index], given[index]);
        if (arguments[index].is_out() && given[index].isTensor()) {
            const Tensor target = given[index].toTensor();
            const Tensor made = at::empty(target.sizes(), target.options().device(at::kCPU));
            value = made;
            outputs.emplace_back(made, target);
        }
    }
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    for (const auto &[made, target] : outputs) copy_from_and_resize(made, target);
    const auto &results = schema.returns();
    const size_t first = stack->size() - results.size();
    for (size_t index = 0; index < results.size(); ++index) {
        c10::IValue &value = (*stack)[first + index];
        value = returned(op, results[index], value, given);
    }
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
    library.impl("mm", mm);
    library.impl("bmm", bmm);
    library.impl("addmm", addmm);
    library.impl("empty.memory_format", empty);
    library.impl("empty_strided", empty_strided);
    library.impl("copy_", copy_);
    library.impl("_copy_from", copy_from);
    library.impl("_copy_from_and_resize", copy_from_and_resize);
    library.impl("resize_", resize_);
    library.impl("as_strided", at::native::as_strided_tensorimpl);
    library.impl("view", at::native::view);
    library.impl("_reshape_alias", at::native::_reshape_alias);
    library.impl("unfold", at::native::unfold);
    library.impl("set_.source_Storage", set_storage);
    library.impl("set_.source_Storage_storage_offset", set_storage_offset);
    library.impl("set_.source_Tensor", set_tensor);
    // CUDA has kernels for whole lists of tensors; without a kernel of our own each list would be a loop of operators.
    for (const auto &name : c10::Dispatcher::singleton().getAllOpNames())
        if (name.name.rfind("aten::_foreach_", 0) == 0)
            library.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

const bool registered = (c10::SetAllocator(c10::DeviceType::CUDA, &allocator), true);

}  // namespace

namespace at {
using Hooks = ::Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}  // namespace at

extern "C" {
// Whether the calling thread captures a graph.
void simulated_capture(int on) { capturing = on; }
// Operators that ran on the device since the library was loaded.
int64_t simulated_operators() { return operators; }
// Correct that number, by `more`.
void simulated_count(int64_t more) { operators += more; }
// Bytes of tensors on the device: now, and at the most since simulated_reset_peak.
int64_t simulated_allocated() { return allocated; }
int64_t simulated_peak() { return peak; }
void simulated_reset_peak() { peak = allocated.load(); }
}
