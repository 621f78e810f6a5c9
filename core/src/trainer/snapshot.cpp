#include "trainer/snapshot.h"

#include <ATen/ops/empty.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>

namespace marlin {
namespace {

at::Tensor bytes_of(const c10::Storage& storage) {
  const auto bytes = static_cast<int64_t>(storage.nbytes());
  return at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage.device())).set_(storage, 0, {bytes}, {1});
}

}  // namespace

Checkpoint Snapshot::begin(const Checkpoint& live, const Storages& may_wait) {
  copies_.clear();
  places_.clear();
  copied_.reset();
  Checkpoint result;
  result.module_interface_state = over_copies(live.module_interface_state, may_wait);
  result.trainer_state = over_copies(live.trainer_state, may_wait);
  result.trainer_backend_state = over_copies(live.trainer_backend_state, may_wait);
  buffers_.resize(copies_.size());
  for (Copy& each : copies_) {
    if (!each.from.device().is_cpu() || !each.waits) copy(each);  // a device copies on a stream of its own: nobody waits here
  }
  if (side_stream_) {
    copied_.emplace(side_stream_->device_type());
    copied_->record(*side_stream_);
  }
  return result;
}

void Snapshot::copy_rest() {
  for (Copy& each : copies_) {
    if (each.waits && each.from.device().is_cpu()) copy(each);
  }
}

int64_t Snapshot::repair() {
  int64_t count = 0;
  for (Copy& each : copies_) {
    if (!each.waits || !each.from.device().is_cpu() || !moved(each)) continue;
    copy(each);
    never_wait_.insert(each.from.unsafeGetStorageImpl());
    ++count;
  }
  return count;
}

void Snapshot::wait_for_device() {
  if (copied_) copied_->synchronize();
}

void Snapshot::block_device_streams() {
  if (!copied_) return;
  const c10::impl::VirtualGuardImpl device(side_stream_->device_type());
  copied_->block(device.getStream(side_stream_->device()));
}

bool Snapshot::moved(const Copy& copy) {
  for (const auto& [tensor, version] : copy.seen) {
    if (tensor._version() != version) return true;
  }
  return false;
}

void Snapshot::copy(Copy& copy) {
  const size_t bytes = std::min(copy.from.nbytes(), copy.to.nbytes());  // a storage may have been resized meanwhile
  if (bytes == 0) return;
  if (copy.from.device().is_cpu()) {
    std::memcpy(copy.to.mutable_data_ptr(), copy.from.data(), bytes);
    return;
  }
  // The device's own queue must have come to the save point before the side stream reads.
  const c10::Device device = copy.from.device();
  const c10::impl::VirtualGuardImpl guard(device.type());
  if (!side_stream_) side_stream_ = guard.getStreamFromGlobalPool(device, /*isHighPriority=*/false);
  c10::Event reached(device.type());
  reached.record(guard.getStream(device));
  reached.block(*side_stream_);
  const c10::StreamGuard on_side_stream(*side_stream_);
  copy.to.copy_(bytes_of(copy.from), /*non_blocking=*/true);
}

at::Tensor Snapshot::buffer(size_t place, int64_t bytes, at::Device from) {
  if (buffers_.size() <= place) buffers_.resize(place + 1);
  at::Tensor& kept = buffers_[place];
  // Whoever kept a state that was handed out keeps its memory, too.
  const bool free = kept.defined() && kept.numel() == bytes && kept.storage().use_count() == 1;
  if (!free) kept = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(!from.is_cpu()));
  return kept;
}

size_t Snapshot::copy_of(const at::Tensor& tensor, const Storages& may_wait) {
  const c10::Storage& storage = tensor.storage();
  const auto* key = storage.unsafeGetStorageImpl();
  const auto [at, is_new] = places_.try_emplace(key, copies_.size());
  if (is_new) {
    const bool waits = may_wait.contains(key) && !never_wait_.contains(key);
    copies_.push_back({storage, buffer(at->second, static_cast<int64_t>(storage.nbytes()), storage.device()), waits, {}});
  }
  if (!tensor.is_inference()) copies_[at->second].seen.emplace_back(tensor, static_cast<uint32_t>(tensor._version()));
  return at->second;
}

at::Tensor Snapshot::over_copy(const at::Tensor& tensor, const Storages& may_wait) {
  if (!tensor.defined() || !tensor.has_storage() || tensor.layout() != at::kStrided) return tensor;  // refused by name where it is written
  if (tensor.is_conj() || tensor.is_neg()) return tensor.resolve_conj().resolve_neg().clone();  // a view that storage alone does not tell
  const Copy& copy = copies_[copy_of(tensor, may_wait)];
  return at::empty({0}, tensor.options().device(at::kCPU).requires_grad(false).pinned_memory(false))
      .set_(copy.to.storage(), tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

Value Snapshot::over_copies(const Value& value, const Storages& may_wait) {
  const auto items = [&](const std::vector<Value>& from) {
    std::vector<Value> result;
    result.reserve(from.size());
    for (const Value& item : from) result.push_back(over_copies(item, may_wait));
    return result;
  };
  if (const auto* tensor = value.get_if<at::Tensor>()) return over_copy(*tensor, may_wait);
  if (const auto* list = value.get_if<List>()) return List{items(list->items)};
  if (const auto* tuple = value.get_if<Tuple>()) return Tuple{items(tuple->items)};
  if (const auto* dict = value.get_if<StateDict>()) return over_copies(*dict, may_wait);
  return value;
}

StateDict Snapshot::over_copies(const StateDict& state, const Storages& may_wait) {
  StateDict result;
  result.ordered_dict = state.ordered_dict;
  result.attributes = state.attributes;
  for (const auto& [key, value] : state) result.set(key, over_copies(value, may_wait));
  return result;
}

}  // namespace marlin
