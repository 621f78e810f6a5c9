#include "archive/pickle_writer.h"

#include <bit>
#include <limits>

#include "archive/pickle_opcodes.h"
#include "archive/zip_format.h"

namespace marlin::archive {
namespace {

void put(std::string& bytes, Opcode opcode) { bytes += static_cast<char>(opcode); }
using archive::put;

}  // namespace

PickleWriter::PickleWriter() {
  put(bytes_, Opcode::kProto);
  bytes_ += '\2';
}

void PickleWriter::null() { put(bytes_, Opcode::kNone); }
void PickleWriter::boolean(bool value) { put(bytes_, value ? Opcode::kNewTrue : Opcode::kNewFalse); }

void PickleWriter::integer(int64_t value) {
  if (value >= 0 && value <= std::numeric_limits<uint8_t>::max()) {
    put(bytes_, Opcode::kBinInt1);
    put(bytes_, static_cast<uint8_t>(value));
  } else if (value >= 0 && value <= std::numeric_limits<uint16_t>::max()) {
    put(bytes_, Opcode::kBinInt2);
    put(bytes_, static_cast<uint16_t>(value));
  } else if (value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max()) {
    put(bytes_, Opcode::kBinInt);
    put(bytes_, static_cast<uint32_t>(value));
  } else {
    put(bytes_, Opcode::kLong1);
    put(bytes_, uint8_t{8});
    put(bytes_, static_cast<uint64_t>(value));
  }
}

void PickleWriter::real(double value) {
  put(bytes_, Opcode::kBinFloat);
  put(bytes_, static_cast<uint64_t>(__builtin_bswap64(std::bit_cast<uint64_t>(value))));
}

void PickleWriter::text(std::string_view value) {
  put(bytes_, Opcode::kBinUnicode);
  put(bytes_, static_cast<uint32_t>(value.size()));
  bytes_ += value;
}

void PickleWriter::global(std::string_view module, std::string_view name) {
  std::string full(module);
  full.append("\n").append(name).append("\n");
  const auto [at, is_new] = memo_.try_emplace(full, static_cast<uint8_t>(memo_.size()));
  put(bytes_, is_new ? Opcode::kGlobal : Opcode::kBinGet);
  if (is_new) {
    bytes_ += full;
    put(bytes_, Opcode::kBinPut);
  }
  put(bytes_, at->second);
}

void PickleWriter::integers(std::span<const int64_t> values) {
  begin_tuple();
  for (const int64_t value : values) integer(value);
  end_tuple();
}

// What torch.load asks for the record: ("storage", type, key, location, number of elements).
void PickleWriter::storage(const TensorDescription& tensor) {
  const DtypeInfo& info = dtype_info(tensor.dtype);
  begin_tuple();
  text("storage");
  if (tensor.untyped) {
    global("torch.storage", "UntypedStorage");
  } else {
    global("torch", info.storage);
  }
  text(tensor.storage_key);
  text("cpu");
  integer(tensor.untyped ? tensor.storage_bytes : tensor.storage_bytes / info.item_size);
  end_tuple();
  put(bytes_, Opcode::kBinPersId);
}

void PickleWriter::tensor(const TensorDescription& tensor) {
  global("torch._utils", tensor.untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  begin_tuple();
  storage(tensor);
  integer(tensor.offset);
  integers(tensor.sizes);
  integers(tensor.strides);
  boolean(false);                     // requires_grad
  begin_dict(true), end_dict(true);   // backward hooks
  if (tensor.untyped) global("torch", dtype_info(tensor.dtype).name);
  end_tuple();
  put(bytes_, Opcode::kReduce);
}

void PickleWriter::begin_list() {
  put(bytes_, Opcode::kEmptyList);
  put(bytes_, Opcode::kMark);
}

// Where nothing came after the mark, it goes, too.
void PickleWriter::end_list(bool empty) {
  if (empty) {
    bytes_.pop_back();
  } else {
    put(bytes_, Opcode::kAppends);
  }
}

void PickleWriter::begin_tuple() { put(bytes_, Opcode::kMark); }
void PickleWriter::end_tuple() { put(bytes_, Opcode::kTuple); }

void PickleWriter::begin_dict(bool ordered) {
  if (ordered) {
    global("collections", "OrderedDict");
    put(bytes_, Opcode::kEmptyTuple);
    put(bytes_, Opcode::kReduce);
  } else {
    put(bytes_, Opcode::kEmptyDict);
  }
  put(bytes_, Opcode::kMark);
}

void PickleWriter::end_dict(bool empty) {
  if (empty) {
    bytes_.pop_back();
  } else {
    put(bytes_, Opcode::kSetItems);
  }
}

void PickleWriter::end_attributes() { put(bytes_, Opcode::kBuild); }

std::string PickleWriter::finish() {
  put(bytes_, Opcode::kStop);
  return std::move(bytes_);
}

}  // namespace marlin::archive
