#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() ((void)0)
#endif

// Waiting begins with a spin, because the others are usually microseconds away and who yields may not come back for
// milliseconds; after a while the core is given up all the same, because the one we wait for may not be running.
#define SPINS 20000
#define IDLE_SPINS 4000

static struct {
    pthread_mutex_t caller;  // held by who runs a job
    pthread_mutex_t lock;    // guards the sleeping of idle threads
    pthread_cond_t wake;
    int threads;             // made so far, the caller not counted
    pid_t process;           // a forked child has none of its parent's threads
    Job job;
    void *argument;
    int count;               // threads that take part in the present job; the others only note that it was
    atomic_uint ticket;      // one more for every job
    atomic_int unfinished;
    atomic_int waiting;      // at the barrier
    atomic_uint round;       // of the barrier
    atomic_llong waited;     // nanoseconds that threads of the present job waited for one that was not running
    int level;               // jobs take count >> level threads
    int rest, patience;      // jobs before the next try with more threads, and how many that was the last time
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void pause_a_little(int turn) {
    if (turn < SPINS) RELAX();
    else sched_yield();
}

static long long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

// Where other programs take the cores, threads that meet at barriers wait for each other's turn on a core, time and
// again, and fewer threads are faster by far. Results do not depend on how many there are.
static void learn(int count, long long took) {
    if (count > 1 && 4 * atomic_load(&pool.waited) > count * took) {
        pool.level++;
        pool.patience = pool.patience < 8 ? 8 : pool.patience < 64 ? 2 * pool.patience : 64;
        pool.rest = pool.patience;
    } else if (pool.level && --pool.rest <= 0) {
        pool.level--;
    } else if (!pool.level) {
        pool.patience = 0;
    }
}

static unsigned next_job(unsigned seen) {
    for (int turn = 0; turn < IDLE_SPINS; turn++) {
        if (atomic_load_explicit(&pool.ticket, memory_order_acquire) != seen) break;
        RELAX();
    }
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.ticket) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    return atomic_load(&pool.ticket);
}

// What a new thread knows: its number, and the jobs that were over before it came.
static struct Birth {
    int index;
    unsigned seen;
} births[MAX_THREADS];

static void *serve(void *argument) {
    struct Birth *birth = argument;
    unsigned seen = birth->seen;
    for (;;) {
        seen = next_job(seen);
        if (birth->index < pool.count) pool.job((Worker){birth->index, pool.count}, pool.argument);
        atomic_fetch_sub_explicit(&pool.unfinished, 1, memory_order_release);
    }
    return NULL;
}

static int make_threads(int wanted) {
    if (pool.process != getpid()) {
        pool.process = getpid();
        pool.threads = 0;
        pthread_mutex_init(&pool.lock, NULL);
        pthread_cond_init(&pool.wake, NULL);
    }
    while (pool.threads < wanted) {
        pthread_t thread;
        struct Birth *birth = &births[pool.threads];
        *birth = (struct Birth){pool.threads + 1, atomic_load(&pool.ticket)};
        if (pthread_create(&thread, NULL, serve, birth)) return -1;
        pthread_detach(thread);
        pool.threads++;
    }
    return 0;
}

int run_job(int count, Job job, void *argument) {
    pthread_mutex_lock(&pool.caller);
    if (make_threads(count - 1)) {
        pthread_mutex_unlock(&pool.caller);
        return -1;
    }
    count = count >> pool.level > 1 ? count >> pool.level : 1;
    const long long started = nanoseconds();
    atomic_store(&pool.waited, 0);
    pool.job = job;
    pool.argument = argument;
    pool.count = count;
    atomic_store(&pool.unfinished, pool.threads);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.ticket, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    job((Worker){0, count}, argument);
    for (int turn = 0; atomic_load_explicit(&pool.unfinished, memory_order_acquire) > 0; turn++) pause_a_little(turn);
    learn(count, nanoseconds() - started);
    pthread_mutex_unlock(&pool.caller);
    return 0;
}

typedef struct {
    Job job;
    void *argument;
    int count;
    atomic_int taken;
} Parts;

static void take_parts(void *argument) {  // there may be fewer threads than parts
    Parts *parts = argument;
    for (int part; (part = atomic_fetch_add(&parts->taken, 1)) < parts->count;)
        parts->job((Worker){part, parts->count}, parts->argument);
}

int run_on(Team team, int count, Job job, void *argument) {
    if (!team) return run_job(count, job, argument);
    Parts parts = {job, argument, count, 0};
    team(take_parts, &parts, count, 0);
    return 0;
}

void barrier(Worker worker) {
    if (worker.count == 1) return;
    unsigned round = atomic_load(&pool.round);
    if (atomic_fetch_add(&pool.waiting, 1) == worker.count - 1) {
        atomic_store(&pool.waiting, 0);
        atomic_fetch_add_explicit(&pool.round, 1, memory_order_release);
        return;
    }
    long long since = 0;
    for (int turn = 0; atomic_load_explicit(&pool.round, memory_order_acquire) == round; turn++) {
        if (turn == SPINS) since = nanoseconds();
        pause_a_little(turn);
    }
    if (since) atomic_fetch_add(&pool.waited, nanoseconds() - since);
}
