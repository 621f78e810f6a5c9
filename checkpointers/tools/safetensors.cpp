#include "safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <unordered_set>

#include "contents.h"
#include "json.h"
#include "marlin/checkpointers/durable_file.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "text.h"

namespace marlin::ckpt {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr const char* kMetadata = "__metadata__";
constexpr size_t kMaxHeader = 100'000'000;  // what readers take

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw Error(Errc::kUnsupported, concat("tensor '", printable(name), "': ", why));
}

const char* format_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBool: return "BOOL";
    case at::kByte: return "U8";
    case at::kChar: return "I8";
    case at::kFloat8_e5m2: return "F8_E5M2";
    case at::kFloat8_e4m3fn: return "F8_E4M3";
    case at::kFloat8_e8m0fnu: return "F8_E8M0";
    case at::kShort: return "I16";
    case at::kUInt16: return "U16";
    case at::kHalf: return "F16";
    case at::kBFloat16: return "BF16";
    case at::kInt: return "I32";
    case at::kUInt32: return "U32";
    case at::kFloat: return "F32";
    case at::kLong: return "I64";
    case at::kUInt64: return "U64";
    case at::kDouble: return "F64";
    default: return nullptr;
  }
}

void check(const std::vector<NamedTensor>& tensors) {
  std::unordered_set<std::string> names;
  for (const NamedTensor& entry : tensors) {
    const at::ScalarType dtype = entry.tensor.scalar_type();
    if (format_name(dtype) == nullptr) refuse(entry.name, concat("safetensors has no dtype ", dtype_name(dtype)));
    if (entry.name == kMetadata) refuse(entry.name, "safetensors keeps this name for itself");
    if (!names.insert(entry.name).second) refuse(entry.name, "there are two of this name: a key with a dot in it looks like two keys");
  }
}

// The length, the header, and spaces up to a multiple of 8.
std::string head(const std::vector<NamedTensor>& tensors, const TextPairs& metadata) {
  std::string header = "{";
  if (!metadata.empty()) {
    Json json = Json::object();
    for (const auto& [key, value] : metadata) json[key] = value;
    header += concat("\"", kMetadata, "\":", json.dump());
  }
  uint64_t offset = 0;
  for (const NamedTensor& entry : tensors) {
    const uint64_t end = offset + entry.tensor.nbytes();
    const Json json = {{"dtype", format_name(entry.tensor.scalar_type())},
                       {"shape", entry.tensor.sizes().vec()},
                       {"data_offsets", {offset, end}}};
    header += concat(header.size() > 1 ? "," : "", Json(entry.name).dump(), ":", json.dump());
    offset = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > kMaxHeader) {
    throw Error(Errc::kUnsupported, concat(counted(tensors.size(), "tensor"), " need a header of ", human_size(header.size()),
                                           "; readers of safetensors take ", human_size(kMaxHeader)));
  }
  const auto size = static_cast<uint64_t>(header.size());
  std::string length(sizeof size, '\0');
  std::memcpy(length.data(), &size, sizeof size);
  return length + header;
}

}  // namespace

uint64_t write_safetensors(const std::filesystem::path& file, std::vector<NamedTensor> tensors, const TextPairs& metadata) {
  check(tensors);
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    const auto size_a = a.tensor.element_size(), size_b = b.tensor.element_size();
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  const std::string start = head(tensors, metadata);
  uint64_t size = start.size();
  for (const NamedTensor& entry : tensors) size += entry.tensor.nbytes();
  write_atomically(file, size, [&](WritableFile& out) {
    out.write_at(0, std::as_bytes(std::span(start)));
    uint64_t offset = start.size();
    for (const NamedTensor& entry : tensors) {
      const at::Tensor tensor = entry.tensor.contiguous();
      out.write_at(offset, {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()});
      offset += tensor.nbytes();
    }
  });
  return size;
}

}  // namespace marlin::ckpt
