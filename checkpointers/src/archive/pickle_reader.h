// Reads a pickle without Python and without running anything from it: dicts, lists, tuples, numbers, text and tensors, as
// torch.save writes state dicts. Made for input that may be broken or hostile. No LibTorch header.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "archive/dtype.h"

namespace marlin::archive {

struct PickleList;
struct PickleDict;

/// A name that the pickle looks up, e.g. "collections.OrderedDict"; one of those that are allowed. Never part of the result.
struct PickleGlobal {
  std::string name;
};

/// The record that holds a storage. Never part of the result, but in tensors.
struct PickleStorage {
  std::string key;
  Dtype dtype = Dtype::kUInt8;  ///< Of its elements, as far as it says; kUInt8 if it is untyped.
  int64_t num_items = 0;
};

/// The geometry is checked against the size that the pickle says the storage has, not against the record.
struct PickleTensor {
  PickleStorage storage;
  Dtype dtype = Dtype::kFloat32;
  int64_t offset = 0;  ///< In elements, as strides.
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;

  [[nodiscard]] int64_t storage_bytes() const { return storage.num_items * dtype_info(storage.dtype).item_size; }
};

/// Text, tensors and containers are shared where the pickle refers back to them.
using PickleValue = std::variant<std::monostate, bool, int64_t, double, std::shared_ptr<const std::string>, std::shared_ptr<const PickleTensor>,
                                 std::shared_ptr<PickleList>, std::shared_ptr<PickleDict>, std::shared_ptr<const PickleGlobal>,
                                 std::shared_ptr<const PickleStorage>>;

/// What the reader keeps of every container, so that it can bound what comes out.
struct PickleNode {
  int depth = 1;
  bool placed = false;    ///< Part of another container: it must not change any more, so that none can hold itself.
  bool internal = false;  ///< Holds a global or a storage: an argument list, no value.
  uint64_t cost = 0;      ///< About how many bytes a copy of it takes, what it refers back to included.
};

struct PickleList : PickleNode {
  bool tuple = false;
  std::vector<PickleValue> items;
};

struct PickleDict : PickleNode {
  bool ordered = false;
  std::vector<std::pair<PickleValue, PickleValue>> entries;  ///< Keys are int64_t or text, none twice.
  std::unordered_set<std::variant<int64_t, std::string>> keys;
  std::shared_ptr<PickleDict> attributes;                    ///< Of an ordered dict; null: none.
};

/// @throws Error kCorrupt (broken), kUnsupported (valid, but with something in it that is not read; named): "data.pkl: <reason>".
[[nodiscard]] PickleValue read_pickle(std::string_view bytes);

}  // namespace marlin::archive
