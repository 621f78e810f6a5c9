#include "archive/zip_reader.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "archive/mapped_file.h"
#include "archive/report.h"
#include "archive/zip_format.h"

namespace marlin::archive {
namespace {

constexpr std::string_view kDirectory = "zip directory";
constexpr const char* kNoEnd = "has no end; the file is truncated, or not a checkpoint";

// A name that stays below its root folder on every system.
bool is_safe_name(std::string_view name) {
  if (name.empty() || name.front() == '/') return false;
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '\\' || c == 0x7f) return false;
  }
  for (size_t start = 0; start <= name.size();) {
    const size_t end = std::min(name.find('/', start), name.size());
    const std::string_view part = name.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

}  // namespace

// The fields that a local header shares with its entry in the directory.
struct ZipReader::Header {
  uint16_t flags, method;
  uint32_t checksum, packed_size, size;
};

ZipReader::ZipReader(std::span<const std::byte> file) : file_(reinterpret_cast<const char*>(file.data()), file.size()) {
  const Directory directory = find_directory();
  read_directory(directory);
  check_overlaps(directory.offset);
}

const ZipRecord* ZipReader::find(const std::string& name) const {
  const auto at = index_.find(name);
  return at == index_.end() ? nullptr : &records_[at->second];
}

std::string_view ZipReader::bytes(const ZipRecord& record) const { return slice(record.data, record.size); }

void ZipReader::require_stored(const ZipRecord& record) const {
  if (record.encrypted) unsupported(printable(record.name), "is encrypted");
  if (record.compressed) unsupported(printable(record.name), "is compressed; records of a checkpoint are stored as they are");
}

void ZipReader::verify(const ZipRecord& record) const {
  require_stored(record);
  constexpr size_t kPiece = size_t{1} << 20;
  uint32_t checksum = 0;
  for (std::string_view rest = bytes(record); !rest.empty();) {
    const std::string_view piece = rest.substr(0, kPiece);
    bring_in(std::as_bytes(std::span(piece)));
    checksum = crc32_gzip_refl(checksum, reinterpret_cast<const unsigned char*>(piece.data()), piece.size());
    rest.remove_prefix(piece.size());
  }
  if (checksum != record.checksum) corrupt(printable(record.name), "its bytes do not match their checksum (CRC-32)");
}

std::string_view ZipReader::slice(uint64_t offset, uint64_t size) const {
  if (offset > file_.size() || size > file_.size() - offset) corrupt(kDirectory, "points past the end of the file");
  return file_.substr(offset, size);
}

template <class T>
T ZipReader::number(uint64_t offset) const {
  T value;
  std::memcpy(&value, slice(offset, sizeof value).data(), sizeof value);
  return value;
}

ZipReader::Header ZipReader::read_header(uint64_t at) const {
  return {number<uint16_t>(at), number<uint16_t>(at + 2), number<uint32_t>(at + 8), number<uint32_t>(at + 12), number<uint32_t>(at + 16)};
}

ZipReader::Directory ZipReader::find_directory() const {
  if (file_.size() < kEndSize) corrupt(kDirectory, kNoEnd);
  const uint64_t last = file_.size() - kEndSize;
  const uint64_t first = last > 0xffff ? last - 0xffff : 0;  // a comment may follow
  std::optional<uint64_t> end;
  for (uint64_t at = last + 1; at-- > first && !end;) {
    if (number<uint32_t>(at) == kEnd && at + kEndSize + number<uint16_t>(at + 20) == file_.size()) end = at;
  }
  if (!end) corrupt(kDirectory, kNoEnd);
  if (number<uint32_t>(*end + 4) != 0) corrupt(kDirectory, "says that it is one part of several, which no checkpoint is");

  const Directory found{number<uint32_t>(*end + 16), number<uint32_t>(*end + 12), number<uint16_t>(*end + 10)};
  if (number<uint16_t>(*end + 8) != found.count) corrupt(kDirectory, "contradicts itself on the number of records");
  if (*end < kZip64LocatorSize || number<uint32_t>(*end - kZip64LocatorSize) != kZip64Locator) {
    if (found.offset + found.size != *end) corrupt(kDirectory, "does not end where its end record begins");
    return found;
  }
  const Directory zip64 = read_zip64_end(*end);
  const auto agrees = [](uint64_t narrow, uint64_t wide, uint64_t too_large) { return narrow == too_large || narrow == wide; };
  if (!agrees(found.offset, zip64.offset, kSeeZip64) || !agrees(found.size, zip64.size, kSeeZip64) ||
      !agrees(found.count, zip64.count, 0xffff)) {
    corrupt(kDirectory, "contradicts its ZIP64 end record");
  }
  return zip64;
}

ZipReader::Directory ZipReader::read_zip64_end(uint64_t end) const {
  const uint64_t locator = end - kZip64LocatorSize;
  const auto zip64 = number<uint64_t>(locator + 8);
  if (zip64 > locator || locator - zip64 < kZip64EndSize || number<uint32_t>(zip64) != kZip64End) {
    corrupt(kDirectory, "has a bad ZIP64 end record");
  }
  const Directory found{number<uint64_t>(zip64 + 48), number<uint64_t>(zip64 + 40), number<uint64_t>(zip64 + 32)};
  if (number<uint64_t>(zip64 + 24) != found.count) corrupt(kDirectory, "contradicts itself on the number of records");
  if (found.offset > zip64 || found.size != zip64 - found.offset) corrupt(kDirectory, "does not end where its end record begins");
  return found;
}

void ZipReader::read_directory(const Directory& directory) {
  if (directory.count > directory.size / kCentralHeaderSize) corrupt(kDirectory, "is too short for its number of records");
  records_.reserve(directory.count);
  uint64_t position = directory.offset;
  const uint64_t end = directory.offset + directory.size;
  for (uint64_t i = 0; i < directory.count; ++i) {
    ZipRecord record = read_record(position, end);
    if (record.name.back() == '/' && record.size == 0) continue;  // a folder's own entry; some tools write one
    take_root_folder(record.name);
    if (!index_.emplace(record.name, records_.size()).second) corrupt(printable(record.name), "there are two records of this name");
    records_.push_back(std::move(record));
  }
  if (position != end) corrupt(kDirectory, "holds more than its records");
}

void ZipReader::take_root_folder(std::string& name) {
  const size_t slash = name.find('/');
  if (!is_safe_name(name) || slash == std::string::npos) {
    corrupt(printable(name), "no name for a record: it must be a plain path below one folder");
  }
  if (root_.empty()) root_ = name.substr(0, slash + 1);
  if (!name.starts_with(root_)) {
    corrupt(printable(name), concat("lies outside the folder '", printable(root_), "' that the other records are in"));
  }
  name.erase(0, root_.size());
}

// Reads the directory's entry at `position` and moves on to the next.
ZipRecord ZipReader::read_record(uint64_t& position, uint64_t directory_end) const {
  const uint64_t at = position;
  if (directory_end - at < kCentralHeaderSize || number<uint32_t>(at) != kCentralHeader) corrupt(kDirectory, "has a bad entry");
  const uint64_t name_size = number<uint16_t>(at + 28), extra_size = number<uint16_t>(at + 30), comment_size = number<uint16_t>(at + 32);
  if (directory_end - at - kCentralHeaderSize < name_size + extra_size + comment_size || name_size == 0) {
    corrupt(kDirectory, "has a bad entry");
  }
  position = at + kCentralHeaderSize + name_size + extra_size + comment_size;

  const Header central = read_header(at + 8);
  const std::string_view name = slice(at + kCentralHeaderSize, name_size);
  ZipRecord record;
  record.name = name;
  record.header = number<uint32_t>(at + 42);
  record.size = central.packed_size;
  record.checksum = central.checksum;
  record.compressed = central.method != 0;
  record.encrypted = (central.flags & kEncryptedFlag) != 0;
  uint64_t full_size = central.size;

  const uint64_t extra_end = at + kCentralHeaderSize + name_size + extra_size;
  for (uint64_t field = extra_end - extra_size; field < extra_end;) {
    if (extra_end - field < 4 || extra_end - field - 4 < number<uint16_t>(field + 2)) corrupt(printable(name), "has a bad extra field");
    const uint64_t field_end = field + 4 + number<uint16_t>(field + 2);
    uint64_t value = field + 4;
    if (number<uint16_t>(field) == kZip64Extra) {
      for (uint64_t* wide : {&full_size, &record.size, &record.header}) {
        if (*wide != kSeeZip64) continue;
        if (field_end - value < 8) corrupt(printable(name), "has a bad ZIP64 field");
        *wide = number<uint64_t>(value);
        value += 8;
      }
    }
    field = field_end;
  }

  if (full_size != record.size && !record.compressed && !record.encrypted) corrupt(printable(name), "has two sizes");
  check_local_header(record, central, name);
  return record;
}

// Fills in where the data is. Python looks only at the directory; a header that disagrees tells of a file that was tampered with.
void ZipReader::check_local_header(ZipRecord& record, const Header& central, std::string_view full_name) const {
  const uint64_t at = record.header;
  const std::string where = printable(full_name);
  if (at > file_.size() || file_.size() - at < kLocalHeaderSize || number<uint32_t>(at) != kLocalHeader) {
    corrupt(where, "has no local header where the directory says");
  }
  const Header local = read_header(at + 6);
  const uint64_t name_size = number<uint16_t>(at + 26), extra_size = number<uint16_t>(at + 28);
  const uint64_t room = file_.size() - at - kLocalHeaderSize;
  if (name_size + extra_size > room || record.size > room - name_size - extra_size) corrupt(where, "reaches past the end of the file");
  record.data = at + kLocalHeaderSize + name_size + extra_size;
  if (slice(at + kLocalHeaderSize, name_size) != full_name || local.flags != central.flags || local.method != central.method) {
    corrupt(where, "its local header contradicts the directory");
  }
  if ((central.flags & kDescriptorFlag) != 0) {
    check_descriptor(record);
  } else if (local.checksum != central.checksum || (local.packed_size != central.packed_size && local.packed_size != kSeeZip64)) {
    corrupt(where, "its local header contradicts the directory");
  }
}

// The descriptor's signature is optional, and so the whole check is where there is none.
void ZipReader::check_descriptor(const ZipRecord& record) const {
  const uint64_t at = record.data + record.size;
  if (record.compressed || record.encrypted || file_.size() - at < 16 || number<uint32_t>(at) != kDescriptor) return;
  const bool narrow = number<uint32_t>(at + 8) == record.size && number<uint32_t>(at + 12) == record.size;
  const bool wide = file_.size() - at >= 24 && number<uint64_t>(at + 8) == record.size && number<uint64_t>(at + 16) == record.size;
  if (number<uint32_t>(at + 4) != record.checksum || (!narrow && !wide)) {
    corrupt(printable(record.name), "its descriptor contradicts the directory");
  }
}

void ZipReader::check_overlaps(uint64_t directory_offset) const {
  std::vector<const ZipRecord*> in_file;
  in_file.reserve(records_.size());
  for (const ZipRecord& record : records_) in_file.push_back(&record);
  std::sort(in_file.begin(), in_file.end(), [](const ZipRecord* a, const ZipRecord* b) { return a->header < b->header; });
  for (size_t i = 0; i < in_file.size(); ++i) {
    const uint64_t next = i + 1 < in_file.size() ? in_file[i + 1]->header : directory_offset;
    if (in_file[i]->data > next || in_file[i]->size > next - in_file[i]->data) {
      corrupt(printable(in_file[i]->name), "overlaps what follows it");
    }
  }
}

}  // namespace marlin::archive
