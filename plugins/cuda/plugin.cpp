// --device cuda: LibTorch's CUDA library comes into the process with this one; and NCCL process groups for several ranks.
#include <cuda_runtime_api.h>  // first, for the facts of the descriptor

#define USE_C10D_NCCL
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>

#include "marlin/core/device_support.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/plugin.h"
#include "marlin/sdk/text.h"

namespace {

using Nccl = c10d::ProcessGroupNCCL;

class Cuda final : public marlin::DeviceSupport {
 public:
  int num_devices() override {
    try {
      return c10::cuda::device_count_ensure_non_zero();
    } catch (const c10::Error& error) {
      throw marlin::Error(marlin::Errc::kUnsupported, marlin::concat("no GPU can be used: ", marlin::one_line(error.what_without_backtrace()), "; give --device cpu to train without"));
    }
  }

  void use(int index) override { c10::cuda::set_device(static_cast<c10::DeviceIndex>(index)); }

  ProcessGroupPtr make_process_group(const StorePtr& store, int rank, int size, std::chrono::milliseconds limit) override {
    ::setenv("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "0", /*overwrite=*/0);  // else its watchdog waits a minute longer than the limit
    const auto options = Nccl::Options::create();
    options->timeout = limit;
    return c10::make_intrusive<Nccl>(store, rank, size, options);
  }
};

marlin::DeviceSupport* make(marlin::HostContext&, const marlin::Options&) { return new Cuda; }

}  // namespace

MARLIN_PLUGIN(.name = "cuda", .version = "1.0.0", .make_device = &make);
