"""`make gpu-check`: what this version does on the GPU at hand, beside transformers and PEFT doing the same."""
