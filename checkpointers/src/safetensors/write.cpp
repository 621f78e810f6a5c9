#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <unordered_set>
#include <utility>

#include "archive/hash.h"
#include "archive/report.h"
#include "archive/state_plan.h"
#include "archive/two_threads.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/text.h"
#include "safetensors/format.h"

namespace marlin {
namespace safetensors {
namespace {

using archive::Hash128;
using archive::kHexDigits;
using archive::printable;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  archive::unsupported(concat("tensor '", printable(name), "'"), why);
}

void check(const std::vector<NamedTensor>& tensors) {
  std::unordered_set<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    if (const std::string why = archive::unwritable(tensor); !why.empty()) refuse(name, why);
    if (tensor.dim() > static_cast<int64_t>(kMaxDimensions)) refuse(name, concat("has ", tensor.dim(), " dimensions; readers take ", kMaxDimensions));
    const Dtype* dtype = dtype_of(tensor.scalar_type());
    const std::string type(c10::getDtypeNames(tensor.scalar_type()).first);
    if (dtype == nullptr) refuse(name, concat("safetensors has no dtype ", type));
    if (!dtype->written) refuse(name, concat("many readers of safetensors know no dtype ", type));
    if (!archive::is_utf8(name)) refuse(name, "its name is not UTF-8");
    if (name == kMetadata) refuse(name, "safetensors keeps this name for itself");
    if (!names.insert(name).second) refuse(name, "there are two of this name: a key with a dot in it looks like two keys");
  }
}

void check(const SafetensorsMetadata& metadata) {
  std::unordered_set<std::string_view> keys = {kHashKey, kTensorHashesKey};
  for (const auto& [key, text] : metadata) {
    if (!keys.insert(key).second) throw Error(Errc::kInvalidArgument, concat("metadata '", printable(key), "' is given twice, or is libmarlin's own"));
    if (!archive::is_utf8(key) || !archive::is_utf8(text)) archive::unsupported(concat("metadata '", printable(key), "'"), "text that is not UTF-8");
  }
}

// The file's beginning, the hashes still zero.
struct Head {
  std::string text;          // the length, the header, and spaces up to a multiple of 8
  size_t hash = 0;           // where the digits of its own begin; 0: there are none
  size_t tensor_hashes = 0;
};

Head make_head(const std::vector<NamedTensor>& tensors, const SafetensorsMetadata& metadata, bool hashes) {
  Head head;
  std::string& text = head.text;
  text.assign(kLengthSize, '\0');
  if (hashes) {
    head.hash = text.append(kBeforeHash).size();
    head.tensor_hashes = text.append(kHexDigits, '0').append(kBeforeTensorHashes).size();
    text.append(tensors.size() * kHexDigits, '0').append("\"");
  } else {
    text += metadata.empty() ? "{" : concat("{\"", kMetadata, "\":{");
  }
  for (const auto& [key, value] : metadata) text += concat(text.back() == '{' ? "" : ",", Json(key).dump(), ":", Json(value).dump());
  if (hashes || !metadata.empty()) text += "}";
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t end = offset + tensor.nbytes();
    std::vector<std::string> sizes;
    for (const int64_t size : tensor.sizes()) sizes.push_back(std::to_string(size));
    text += concat(text.back() == '{' ? "" : ",", Json(name).dump(), ":{\"dtype\":\"", dtype_of(tensor.scalar_type())->name, "\",\"shape\":[", join(sizes, ","),
                   "],\"data_offsets\":[", offset, ",", end, "]}");
    offset = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size() - kLengthSize;
  if (size > kMaxHeader) {
    throw Error(Errc::kUnsupported, concat(tensors.size(), " tensors need a header of ", size, " bytes; readers of safetensors take ", kMaxHeader));
  }
  std::memcpy(text.data(), &size, sizeof size);
  return head;
}

// Piece by piece, so that a piece is hashed while it is in the processor's cache.
Hash128 write_tensor(WritableFile& out, uint64_t offset, const at::Tensor& tensor, bool start_flush) {
  constexpr size_t kPiece = size_t{1} << 20;
  const c10::NoGradGuard no_grad;  // of this thread
  const at::Tensor plain = tensor.resolve_conj().resolve_neg().cpu().contiguous();
  std::span<const std::byte> bytes(static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes());
  archive::Hasher hasher;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(kPiece, bytes.size()));
    hasher.update(piece);
    out.write_at(offset, piece);
    if (start_flush) out.start_flush(offset, piece.size());
    offset += piece.size();
    bytes = bytes.subspan(piece.size());
  }
  return hasher.digest();
}

void put_hashes(Head& head, const std::vector<Hash128>& hashes) {
  for (size_t i = 0; i < hashes.size(); ++i) head.text.replace(head.tensor_hashes + i * kHexDigits, kHexDigits, archive::to_hex(hashes[i]));
  head.text.replace(head.hash, kHexDigits, archive::to_hex(archive::hash_of(head.text)));
}

}  // namespace
}  // namespace safetensors

SafetensorsWritten write_safetensors(const std::filesystem::path& file, std::vector<NamedTensor> tensors, const SafetensorsMetadata& metadata, Hashes hashes,
                                     Durability durability, FileSystem& file_system) {
  safetensors::check(tensors);
  safetensors::check(metadata);
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    const auto size_a = a.tensor.element_size(), size_b = b.tensor.element_size();
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  const bool with_hashes = hashes == Hashes::kXxh3;
  safetensors::Head head = safetensors::make_head(tensors, metadata, with_hashes);
  std::vector<uint64_t> offsets;
  uint64_t size = head.text.size();
  for (const NamedTensor& entry : tensors) {
    offsets.push_back(size);
    size += entry.tensor.nbytes();
  }
  write_atomically(file, size, [&](WritableFile& out) {
    std::vector<archive::Hash128> digests(tensors.size());
    archive::for_each_on_two_threads(tensors.size(), size >= archive::kWorthAThread, [&](size_t i) {
      digests[i] = safetensors::write_tensor(out, offsets[i], tensors[i].tensor, durability == Durability::kDurable);
    });
    if (with_hashes) safetensors::put_hashes(head, digests);
    out.write_at(0, std::as_bytes(std::span(head.text)));
  }, durability, file_system);
  return {size, with_hashes ? head.text.substr(head.hash, archive::kHexDigits) : ""};
}

}  // namespace marlin
