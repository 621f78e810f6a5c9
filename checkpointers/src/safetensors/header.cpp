#include "safetensors/header.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_set>

#include "archive/mapped_file.h"
#include "archive/report.h"

namespace marlin::safetensors {
namespace {

using archive::corrupt;
using archive::Hash128;
using archive::kHexDigits;
using archive::printable;
using archive::unsupported;

constexpr std::string_view kWhere = "header";

// Takes the header's JSON as it is read: nothing is kept but what belongs there, so that it takes no more memory than its text explains.
class Parser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Header header;

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) return go(Place::kRoot);
    if (place_ == Place::kRoot) return go(name_ == kMetadata ? Place::kMetadata : Place::kEntry);
    unexpected();
  }
  bool end_object() override {
    if (place_ == Place::kEntry) finish_entry();
    return go(place_ == Place::kRoot ? Place::kStart : Place::kRoot);
  }
  bool key(string_t& key) override {
    if (place_ == Place::kRoot) begin_entry(key);
    if (place_ == Place::kMetadata && !keys_.insert(key).second) corrupt(kWhere, concat("metadata '", printable(key), "' is there twice"));
    if (place_ == Place::kEntry) begin_field(key);
    key_ = key;
    return true;
  }
  bool string(string_t& text) override {
    if (place_ == Place::kMetadata) {
      header.metadata.emplace_back(key_, text);
      return true;
    }
    if (place_ != Place::kEntry || key_ != "dtype") unexpected();
    Entry& entry = header.entries.back();
    entry.dtype = dtype_of_name(text);
    if (entry.dtype == nullptr) unsupported(where(), concat("dtype '", printable(text), "' is none that is read here"));
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ != Place::kEntry || key_ == "dtype") unexpected();
    numbers_.clear();
    return go(Place::kNumbers);
  }
  bool end_array() override {
    Entry& entry = header.entries.back();
    if (key_ == "shape") {
      for (const uint64_t number : numbers_) entry.sizes.push_back(static_cast<int64_t>(number));
    } else {
      if (numbers_.size() != 2) corrupt(where(), "data_offsets are not two");
      entry.begin = numbers_[0];
      entry.end = numbers_[1];
    }
    return go(Place::kEntry);
  }
  bool number_unsigned(number_unsigned_t number) override {
    if (place_ != Place::kNumbers) unexpected();
    if (number > uint64_t{std::numeric_limits<int64_t>::max()}) corrupt(where(), concat(key_, ": ", number, " is too large"));
    if (numbers_.size() == kMaxDimensions) corrupt(where(), concat(key_, ": more than ", kMaxDimensions, " numbers"));
    numbers_.push_back(number);
    return true;
  }
  bool number_integer(number_integer_t) override { unexpected(); }  // below zero
  bool number_float(number_float_t, const string_t&) override { unexpected(); }
  bool null() override { unexpected(); }
  bool boolean(bool) override { unexpected(); }
  bool binary(binary_t&) override { unexpected(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override { corrupt(kWhere, "is not JSON"); }

 private:
  enum class Place : uint8_t { kStart, kRoot, kMetadata, kEntry, kNumbers };

  bool go(Place place) {
    place_ = place;
    return true;
  }
  [[nodiscard]] std::string where() const { return concat("tensor '", printable(name_), "'"); }
  [[noreturn]] void unexpected() const {
    if (place_ == Place::kStart) corrupt(kWhere, "is no JSON object");
    if (place_ == Place::kMetadata) corrupt(kWhere, concat("metadata '", printable(key_), "' is not text"));
    if (place_ == Place::kRoot) corrupt(name_ == kMetadata ? std::string(kWhere) : where(), "is no JSON object");
    corrupt(where(), concat(key_, " is not what it must be"));
  }
  void begin_entry(const std::string& name) {
    name_ = name;
    if (!names_.insert(name).second) corrupt(where(), "there are two of this name");
    if (name == kMetadata) return;
    header.entries.emplace_back().name = name;
    fields_.clear();
  }
  void begin_field(const std::string& key) {
    if (std::find(fields_.begin(), fields_.end(), key) != fields_.end()) corrupt(where(), concat(key, " is there twice"));
    if (key != "dtype" && key != "shape" && key != "data_offsets") corrupt(where(), concat("'", printable(key), "' is no part of the format"));
    fields_.push_back(key);
  }
  void finish_entry() const {
    if (fields_.size() != 3) corrupt(where(), "lacks one of dtype, shape and data_offsets");
  }

  Place place_ = Place::kStart;
  std::string name_, key_;  // of the entry, and within it
  std::unordered_set<std::string> names_, keys_;
  std::vector<std::string> fields_;
  std::vector<uint64_t> numbers_;
};

// How many bytes a tensor of that shape takes.
uint64_t bytes_of(const Entry& entry) {
  const std::string where = concat("tensor '", printable(entry.name), "'");
  int64_t elements = 1;
  bool empty = false;
  for (const int64_t size : entry.sizes) {
    empty = empty || size == 0;
    if (__builtin_mul_overflow(elements, std::max<int64_t>(size, 1), &elements)) corrupt(where, "its shape is too large");  // strides of an empty one, too
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(elements), c10::elementSize(entry.dtype->type), &bytes)) corrupt(where, "its shape is too large");
  return empty ? 0 : bytes;
}

void check_offsets(std::vector<Entry>& entries, uint64_t data, uint64_t file_size) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t end = 0;
  for (Entry& entry : entries) {
    const std::string where = concat("tensor '", printable(entry.name), "'");
    if (entry.end < entry.begin || entry.end > file_size - data) corrupt(where, "its bytes reach past the end of the file");
    if (entry.begin < end) corrupt(where, "its bytes overlap those of another");
    if (entry.begin > end) corrupt(where, "there are bytes before its own that belong to none");
    if (entry.end - entry.begin != bytes_of(entry)) corrupt(where, concat("has ", entry.end - entry.begin, " bytes, its shape says ", bytes_of(entry)));
    end = entry.end;
    entry.begin += data;
    entry.end += data;
  }
  if (data + end != file_size) corrupt("the file", concat("has ", file_size - data - end, " bytes more than its tensors"));
}

// Digits that stand for nothing yet.
Hash128 hash_without_digits(std::string_view head, size_t digits) {
  archive::Hasher hasher;
  const auto update = [&](std::string_view text) { hasher.update(std::as_bytes(std::span(text))); };
  update(head.substr(0, digits));
  update(std::string(kHexDigits, '0'));
  update(head.substr(digits + kHexDigits));
  return hasher.digest();
}

// The header's own hash, if it begins as those of libmarlin do.
std::optional<Hash128> own_hash(std::string_view head) {
  const std::string_view json = head.substr(kLengthSize);
  if (!json.starts_with(kBeforeHash)) return std::nullopt;
  const size_t digits = kLengthSize + kBeforeHash.size();
  const auto own = archive::hash_of_hex(head.substr(digits, kHexDigits));
  if (!own || hash_without_digits(head, digits) != *own) corrupt(kWhere, "its bytes do not match its hash (XXH3)");
  return own;
}

void take_hashes(Header& header, const std::optional<Hash128>& own) {
  std::optional<std::string> tensors;
  bool named = false;
  std::erase_if(header.metadata, [&](auto& entry) {
    if (entry.first == kTensorHashesKey) tensors = entry.second;
    named = named || entry.first == kHashKey;
    return entry.first == kHashKey || entry.first == kTensorHashesKey;
  });
  if (named != own.has_value() || tensors.has_value() != own.has_value()) {
    corrupt(kWhere, "has hashes of libmarlin's, but is not as libmarlin wrote it; who writes such a file anew must leave out metadata that begins "
                    "with marlin_");
  }
  if (!own) return;
  if (tensors->size() != header.entries.size() * kHexDigits) corrupt(kWhere, "has not one hash for each tensor");
  FileHashes& hashes = header.hashes.emplace(FileHashes{*own, {}});
  for (size_t i = 0; i < tensors->size(); i += kHexDigits) {
    const auto hash = archive::hash_of_hex(std::string_view(*tensors).substr(i, kHexDigits));
    if (!hash) corrupt(kWhere, "has a hash that is none");
    hashes.tensors.push_back(*hash);
  }
}

}  // namespace

Header read_header(std::span<const std::byte> file) {
  if (file.size() < kLengthSize) corrupt(kWhere, "the file is too short to have one");
  archive::bring_in(file.first(kLengthSize));
  uint64_t size = 0;
  std::memcpy(&size, file.data(), sizeof size);
  if (size > kMaxHeader) corrupt(kWhere, concat("of ", size, " bytes, more than the format allows; not a safetensors file"));
  if (size > file.size() - kLengthSize) corrupt(kWhere, "reaches past the end of the file; it is truncated, or not a safetensors file");
  archive::bring_in(file.first(kLengthSize + size));
  const std::string_view head(reinterpret_cast<const char*>(file.data()), kLengthSize + size);
  const std::string_view json = head.substr(kLengthSize);
  if (!json.starts_with('{')) corrupt(kWhere, "does not begin with a brace; not a safetensors file");
  if (json.find('\0') != std::string_view::npos) corrupt(kWhere, "is not JSON");  // the parser would take it for the end
  const std::optional<Hash128> own = own_hash(head);
  Parser parser;
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &parser)) corrupt(kWhere, "is not JSON");
  check_offsets(parser.header.entries, head.size(), file.size());
  take_hashes(parser.header, own);
  return std::move(parser.header);
}

}  // namespace marlin::safetensors
