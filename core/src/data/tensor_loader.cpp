#include "marlin/core/data/tensor_loader.h"

#include <ATen/ops/index_select.h>

#include "data/fingerprint.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

int64_t common_length(const std::vector<at::Tensor>& tensors) {
  if (tensors.empty()) throw Error(Errc::kInvalidArgument, "a tensor loader needs at least one tensor");
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined()) throw Error(Errc::kInvalidArgument, concat("tensor ", i, " of the data set is undefined"));
    const at::Tensor& first = tensors[0];
    const at::Tensor& tensor = tensors[i];
    if (tensor.dim() == 0) throw Error(Errc::kInvalidArgument, concat("tensor ", i, " of the data set has no dimension to count samples in"));
    if (tensor.size(0) != first.size(0)) {
      throw Error(Errc::kInvalidArgument, concat("tensor ", i, " of the data set has ", tensor.size(0), " samples, tensor 0 has ", first.size(0)));
    }
    if (tensor.device() != first.device()) {
      throw Error(Errc::kInvalidArgument, concat("tensor ", i, " of the data set is on ", tensor.device(), ", tensor 0 on ", first.device()));
    }
  }
  return tensors[0].size(0);
}

EpochOrder order_of(const std::vector<at::Tensor>& tensors, const LoaderRequest& request, const TensorLoaderOptions& options) {
  const int64_t length = common_length(tensors);
  return EpochOrder(length, request, detail::chosen_sampler(length, request, options.shuffle, options.sampler), options.drop_last,
                    [tensors, given = options.fingerprint] { return given ? *given : detail::fingerprint(tensors); });
}

}  // namespace

TensorLoader::TensorLoader(std::vector<at::Tensor> tensors, const LoaderRequest& request, const TensorLoaderOptions& options)
    : tensors_(std::move(tensors)), order_(order_of(tensors_, request, options)) {}

std::optional<int64_t> TensorLoader::num_samples() const { return order_.num_samples(); }
int64_t TensorLoader::batch_size() const { return order_.batch_size(); }
bool TensorLoader::drop_last() const { return order_.drop_last(); }
int64_t TensorLoader::consumed_samples() const { return order_.consumed_samples(); }
StateDict TensorLoader::get_state() const { return order_.get_state(); }

std::vector<std::string> TensorLoader::differences(const StateDict& state) const { return order_.differences(state); }

void TensorLoader::begin_epoch(int64_t epoch) {
  order_.begin_epoch(epoch);
  device_order_.reset();
}

void TensorLoader::update_state(const StateDict& state) {
  order_.update_state(state);
  device_order_.reset();
}

bool TensorLoader::next(Batch& into) {
  const std::optional<EpochOrder::Slice> slice = order_.next();
  if (!slice) return false;
  if (!device_order_) {  // one transfer an epoch, not one a batch
    const at::Tensor order = order_.indices(0, order_.num_samples());
    device_order_ = order.defined() ? order.to(tensors_[0].device()) : order;
  }
  const int64_t length = slice->end - slice->begin;
  into.tensors.clear();  // before new ones are made: the allocator can hand out the same memory, which is still in the cache
  into.extra.reset();
  if (device_order_->defined()) {
    const at::Tensor indices = device_order_->narrow(0, slice->begin, length);
    for (const at::Tensor& tensor : tensors_) into.tensors.push_back(at::index_select(tensor, 0, indices));
  } else {
    for (const at::Tensor& tensor : tensors_) into.tensors.push_back(tensor.narrow(0, slice->begin, length));
  }
  into.num_samples = length;
  into.num_global_samples = slice->num_global_samples;
  return true;
}

}  // namespace marlin
