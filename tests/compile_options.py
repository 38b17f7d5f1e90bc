"""How tests compile a program that runs once or twice."""

# XLA at its lowest level: compilation takes half the time.
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
