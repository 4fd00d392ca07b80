"""What a model is worth: fidelity to FP16, IFEval, MMLU and WikiText-2, with intervals and tests."""
