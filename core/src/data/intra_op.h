// How many threads one operation of LibTorch uses.
#pragma once

namespace marlin::detail {

// While it lives, operations that this thread calls run in this thread alone; others are not concerned. at::set_num_threads() is for
// the process, and c10::ParallelGuard keeps no operation from starting threads.
class SingleThreadedOps {
 public:
  SingleThreadedOps();
  ~SingleThreadedOps();
  SingleThreadedOps(const SingleThreadedOps&) = delete;
  SingleThreadedOps& operator=(const SingleThreadedOps&) = delete;

 private:
  int omp_threads_ = 0, mkl_threads_ = 0;
};

}  // namespace marlin::detail
