#include "marlin/core/data/dataset_loader.h"

#include <algorithm>
#include <numeric>

#include "marlin/sdk/text.h"

namespace marlin {
namespace {

template <class Example>
Batch stacked(const std::vector<Example>& examples) {
  if (examples.empty()) throw Error(Errc::kInvalidArgument, "a batch cannot be stacked from no examples: their shape is not known");
  detail::ExampleStacker<Example> stacker(examples.size());
  for (const Example& example : examples) stacker.add(example);
  return stacker.batch();
}

}  // namespace

Batch to_batch(torch::data::Example<> stacked) {
  Batch batch;
  batch.tensors = {std::move(stacked.data), std::move(stacked.target)};
  return batch;
}

Batch to_batch(torch::data::TensorExample stacked) {
  Batch batch;
  batch.tensors = {std::move(stacked.data)};
  return batch;
}

Batch to_batch(const std::vector<torch::data::Example<>>& examples) { return stacked(examples); }

Batch to_batch(const std::vector<torch::data::TensorExample>& examples) { return stacked(examples); }

namespace detail {

std::vector<size_t> dataset_indices(const EpochOrder& order, const EpochOrder::Slice& slice) {
  if (slice.begin == slice.end) return {0};
  std::vector<size_t> indices(static_cast<size_t>(slice.end - slice.begin));
  const at::Tensor permuted = order.indices(slice.begin, slice.end);
  if (permuted.defined()) {
    const int64_t* values = permuted.const_data_ptr<int64_t>();
    indices.assign(values, values + indices.size());
  } else {
    std::iota(indices.begin(), indices.end(), static_cast<size_t>(slice.begin));
  }
  return indices;
}

Batch dataset_batch(Batch collated, const EpochOrder::Slice& slice) {
  const int64_t wanted = slice.end - slice.begin;
  const int64_t read = std::max<int64_t>(wanted, 1);
  for (size_t i = 0; i < collated.tensors.size(); ++i) {
    at::Tensor& tensor = collated.tensors[i];
    if (!tensor.defined() || tensor.dim() == 0 || tensor.size(0) != read) {
      throw Error(Errc::kInvalidArgument, concat("data set: ", read, " samples were asked for, but tensor ", i, " of the batch ",
                                                 !tensor.defined() ? "is undefined" : concat("has shape ", tensor.sizes())));
    }
    if (wanted == 0) tensor = tensor.narrow(0, 0, 0);
  }
  collated.num_samples = wanted;
  collated.num_global_samples = slice.num_global_samples;
  return collated;
}

int64_t dataset_size(const std::optional<size_t>& size) {
  if (size) return static_cast<int64_t>(*size);
  throw Error(Errc::kInvalidArgument, "a data set that does not know its size cannot be put in an order; write a DataLoader for it");
}

void check_workers(int64_t num_workers, bool copyable) {
  if (copyable || num_workers <= 1) return;
  throw Error(Errc::kInvalidArgument, concat("num_workers is ", num_workers, ", but this data set cannot be copied, so that only one thread can read it: give num_workers 0 or 1"));
}

}  // namespace detail
}  // namespace marlin
