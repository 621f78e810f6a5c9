#include "data/intra_op.h"

#include <ATen/Parallel.h>

// Of the libraries that LibTorch has loaded; null where it is built without them.
extern "C" {
__attribute__((weak)) void omp_set_num_threads(int count);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int count);
}

namespace marlin::detail {

SingleThreadedOps::SingleThreadedOps() {
  omp_threads_ = at::get_num_threads();  // LibTorch sets this thread up when it first asks, and so would undo what follows
  if (omp_set_num_threads != nullptr) omp_set_num_threads(1);
  if (MKL_Set_Num_Threads_Local != nullptr) mkl_threads_ = MKL_Set_Num_Threads_Local(1);
}

SingleThreadedOps::~SingleThreadedOps() {
  if (omp_set_num_threads != nullptr) omp_set_num_threads(omp_threads_);
  if (MKL_Set_Num_Threads_Local != nullptr) (void)MKL_Set_Num_Threads_Local(mkl_threads_);
}

}  // namespace marlin::detail
