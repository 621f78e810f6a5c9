#include <ATen/ops/empty.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "archive/mapped_file.h"
#include "archive/mapped_storage.h"
#include "archive/named_file.h"
#include "archive/report.h"
#include "archive/two_threads.h"
#include "archive/verification.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "safetensors/header.h"

namespace marlin {

using safetensors::Entry;

class SafetensorsReader::Impl {
 public:
  Impl(const std::filesystem::path& path, Verify verify);

  [[nodiscard]] at::Tensor tensor(size_t index);
  /// Compares those that have not been compared, as far as `verify` asks for it when they are taken.
  void check_taken(const std::vector<size_t>& indices) {
    if (verify_ == Verify::kLazy) check(indices);
  }
  [[nodiscard]] std::vector<size_t> all() const;

  safetensors::Header header;
  Verified verified = Verified::kNothing;
  SafetensorsWritten written;
  std::vector<TensorInfo> infos;
  std::unordered_map<std::string_view, size_t> index;

 private:
  void check(const std::vector<size_t>& indices);
  void compare(size_t index) const;

  std::shared_ptr<const archive::MappedFile> file_;
  Verify verify_;
  std::vector<bool> done_;
};

SafetensorsReader::Impl::Impl(const std::filesystem::path& path, Verify verify)
    : file_(std::make_shared<const archive::MappedFile>(path)), verify_(verify) {
  header = safetensors::read_header(file_->bytes());
  written.size_bytes = file_->bytes().size();
  done_.resize(header.entries.size());
  infos.reserve(header.entries.size());
  for (const Entry& entry : header.entries) {
    index.emplace(entry.name, infos.size());
    infos.push_back({entry.name, entry.dtype->type, entry.sizes, {}});
  }
  if (!header.hashes) return;
  written.xxh3_128 = archive::to_hex(header.hashes->own);
  if (verify == Verify::kFull) check(all());
  if (verify != Verify::kOff) verified = verify == Verify::kFull ? Verified::kHashes : Verified::kAsTaken;
}

std::vector<size_t> SafetensorsReader::Impl::all() const {
  std::vector<size_t> indices(header.entries.size());
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = i;
  return indices;
}

void SafetensorsReader::Impl::check(const std::vector<size_t>& indices) {
  if (!header.hashes) return;
  std::vector<size_t> todo;
  uint64_t size = 0;
  for (const size_t i : indices) {
    if (done_[i]) continue;
    todo.push_back(i);
    size += header.entries[i].end - header.entries[i].begin;
  }
  archive::for_each_on_two_threads(todo.size(), size >= archive::kWorthAThread, [&](size_t i) { compare(todo[i]); });
  for (const size_t i : todo) done_[i] = true;
}

void SafetensorsReader::Impl::compare(size_t index) const {
  const Entry& entry = header.entries[index];
  if (archive::hash_in_memory(std::span<const std::byte>(file_->bytes()).subspan(entry.begin, entry.end - entry.begin)) != header.hashes->tensors[index]) {
    archive::corrupt(concat("tensor '", archive::printable(entry.name), "'"), "its bytes do not match their hash (XXH3)");
  }
}

at::Tensor SafetensorsReader::Impl::tensor(size_t index) {
  const Entry& entry = header.entries[index];
  const size_t item_size = c10::elementSize(entry.dtype->type);
  at::Tensor result = at::empty({0}, at::TensorOptions().dtype(entry.dtype->type).device(at::kCPU));
  std::vector<int64_t> strides(entry.sizes.size(), 1);
  for (size_t i = strides.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(entry.sizes[i], 1);
  return result.set_(archive::storage_in(file_, entry.begin, entry.end - entry.begin, item_size), 0, entry.sizes, strides);
}

SafetensorsReader::SafetensorsReader(const std::filesystem::path& file, Verify verify)
    : path_(file), impl_(archive::with_file_name(file, [&] { return std::make_unique<Impl>(file, verify); })) {}
SafetensorsReader::~SafetensorsReader() = default;
SafetensorsReader::SafetensorsReader(SafetensorsReader&&) noexcept = default;
SafetensorsReader& SafetensorsReader::operator=(SafetensorsReader&&) noexcept = default;

const SafetensorsMetadata& SafetensorsReader::metadata() const noexcept { return impl_->header.metadata; }
Verified SafetensorsReader::verified() const noexcept { return impl_->verified; }
const SafetensorsWritten& SafetensorsReader::written() const noexcept { return impl_->written; }
const std::vector<TensorInfo>& SafetensorsReader::tensors() const noexcept { return impl_->infos; }

at::Tensor SafetensorsReader::tensor(std::string_view name) {
  return archive::with_file_name(path_, [&] {
    const auto at = impl_->index.find(name);
    if (at == impl_->index.end()) throw Error(Errc::kNotFound, concat("holds no tensor '", archive::printable(name), "'"));
    impl_->check_taken({at->second});
    return impl_->tensor(at->second);
  });
}

StateDict SafetensorsReader::state() {
  return archive::with_file_name(path_, [&] {
    impl_->check_taken(impl_->all());
    StateDict state;
    for (size_t i = 0; i < impl_->infos.size(); ++i) state.set(impl_->infos[i].path, impl_->tensor(i));
    return state;
  });
}

}  // namespace marlin
