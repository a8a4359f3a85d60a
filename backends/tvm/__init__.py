"""TVM: lowers the IR to Relax with kernels of our own, compiles and runs it."""
