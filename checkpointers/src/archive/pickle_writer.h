// Writes a pickle of protocol 2 with what a state dict needs, as torch.save would. No LibTorch header.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "archive/dtype.h"

namespace marlin::archive {

/// A tensor as a pickle describes it. Offset and strides count elements.
struct TensorDescription {
  std::string storage_key;    ///< The record is data/<key>.
  int64_t storage_bytes = 0;
  Dtype dtype = Dtype::kFloat32;
  bool untyped = false;       ///< Describe the storage as bytes: the only way for some dtypes, and for storages of several.
  int64_t offset = 0;
  std::span<const int64_t> sizes;
  std::span<const int64_t> strides;
};

/// A container is begun, then given its values (a dict: key, value, key, value, ...), then ended. One value at the top.
class PickleWriter {
 public:
  PickleWriter();

  void null();
  void boolean(bool value);
  void integer(int64_t value);
  void real(double value);
  void text(std::string_view value);  ///< UTF-8, shorter than 4 GiB.
  void tensor(const TensorDescription& tensor);

  void begin_list();
  void end_list(bool empty);
  void begin_tuple();
  void end_tuple();
  void begin_dict(bool ordered);
  void end_dict(bool empty);
  /// After an ordered dict's end, before and after its attributes, which are one dict.
  void end_attributes();

  /// The pickle; the writer is then spent.
  [[nodiscard]] std::string finish();

 private:
  // The second time it is a reference to the first, which keeps a pickle of many tensors short.
  void global(std::string_view module, std::string_view name);
  void integers(std::span<const int64_t> values);
  void storage(const TensorDescription& tensor);

  std::string bytes_;
  std::unordered_map<std::string, uint8_t> memo_;
};

}  // namespace marlin::archive
