#include "archive/zip_writer.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <stdexcept>

namespace marlin {

ByteSink::~ByteSink() = default;

namespace archive {
namespace {

using Record = ZipLayout::Record;

bool is_large(uint64_t value) { return value >= kSeeZip64; }
uint32_t field(uint64_t value) { return is_large(value) ? kSeeZip64 : static_cast<uint32_t>(value); }

// What does not fit the 32-bit fields of a header, in the order that the format prescribes. Empty if all fits.
std::string zip64_extra(const Record& record) {
  std::string numbers;
  if (is_large(record.size)) put(numbers, record.size), put(numbers, record.size);
  if (is_large(record.header)) put(numbers, record.header);
  if (numbers.empty()) return numbers;
  std::string extra;
  put(extra, kZip64Extra);
  put(extra, static_cast<uint16_t>(numbers.size()));
  return extra + numbers;
}

uint16_t flags(const Record& record) { return record.size > 0 ? kUtf8Flag | kDescriptorFlag : kUtf8Flag; }

uint64_t descriptor_size(const Record& record) {
  if (record.size == 0) return 0;
  return is_large(record.size) || is_large(record.header) ? 24 : 16;
}

std::string descriptor(const Record& record, uint32_t checksum) {
  std::string bytes;
  if (record.size == 0) return bytes;
  put(bytes, kDescriptor);
  put(bytes, checksum);
  for (int i = 0; i < 2; ++i) {  // compressed and uncompressed
    if (descriptor_size(record) == 24) {
      put(bytes, record.size);
    } else {
      put(bytes, static_cast<uint32_t>(record.size));
    }
  }
  return bytes;
}

// CRC-32 and sizes are zero here: they follow in the descriptor. A field of the private kind "FB" pads up to the data, as
// torch.save's does; Python's offset calculation (config.load.calculate_storage_offsets) counts on it.
std::string local_header(const Record& record) {
  const std::string zip64 = zip64_extra(record);
  const uint64_t padding = record.data - record.header - kLocalHeaderSize - record.name.size() - zip64.size() - 4;
  std::string bytes;
  put(bytes, kLocalHeader);
  put(bytes, uint16_t{0});  // version
  put(bytes, flags(record));
  for (int i = 0; i < 3; ++i) put(bytes, uint16_t{0});  // method (stored), time, date
  for (int i = 0; i < 3; ++i) put(bytes, uint32_t{0});  // CRC-32, sizes
  put(bytes, static_cast<uint16_t>(record.name.size()));
  put(bytes, static_cast<uint16_t>(zip64.size() + 4 + padding));
  bytes += record.name;
  bytes += zip64;
  bytes += "FB";
  put(bytes, static_cast<uint16_t>(padding));
  bytes.append(padding, 'Z');
  return bytes;
}

std::string central_header(const Record& record, uint32_t checksum) {
  const std::string zip64 = zip64_extra(record);
  std::string bytes;
  put(bytes, kCentralHeader);
  put(bytes, uint16_t{0});  // version made by
  put(bytes, uint16_t{0});  // version needed
  put(bytes, flags(record));
  for (int i = 0; i < 3; ++i) put(bytes, uint16_t{0});  // method (stored), time, date
  put(bytes, checksum);
  put(bytes, field(record.size));
  put(bytes, field(record.size));
  put(bytes, static_cast<uint16_t>(record.name.size()));
  put(bytes, static_cast<uint16_t>(zip64.size()));
  for (int i = 0; i < 3; ++i) put(bytes, uint16_t{0});  // comment size, disk, internal attributes
  put(bytes, uint32_t{0});                              // external attributes
  put(bytes, field(record.header));
  return bytes + record.name + zip64;
}

// The ZIP64 end record is always there, as in torch.save's files.
std::string end_records(uint64_t count, uint64_t offset, uint64_t size) {
  const auto short_count = static_cast<uint16_t>(std::min<uint64_t>(count, 0xffff));
  std::string bytes;
  put(bytes, kZip64End);
  put(bytes, uint64_t{kZip64EndSize - 12});
  put(bytes, uint16_t{0x031e});  // made by: Unix, version 3.0
  put(bytes, uint16_t{0x2d});    // needed: 4.5
  put(bytes, uint64_t{0});       // disks
  put(bytes, count);
  put(bytes, count);
  put(bytes, size);
  put(bytes, offset);

  put(bytes, kZip64Locator);
  put(bytes, uint32_t{0});
  put(bytes, offset + size);
  put(bytes, uint32_t{1});

  put(bytes, kEnd);
  put(bytes, uint32_t{0});  // disks
  put(bytes, short_count);
  put(bytes, short_count);
  put(bytes, field(size));
  put(bytes, field(offset));
  put(bytes, uint16_t{0});  // comment size
  return bytes;
}

}  // namespace

void ZipLayout::add(std::string name, uint64_t size) {
  Record record{std::move(name), size, end_, 0};
  const uint64_t zip64 = zip64_extra(record).size();
  const uint64_t unpadded = record.header + kLocalHeaderSize + record.name.size() + zip64 + 4;
  record.data = (unpadded + kAlignment - 1) / kAlignment * kAlignment;
  end_ = record.data + record.size + descriptor_size(record);
  directory_size_ += kCentralHeaderSize + record.name.size() + zip64;
  records_.push_back(std::move(record));
}

void ZipWriter::send(const std::string& bytes) {
  sink_.append(std::as_bytes(std::span(bytes)));
  position_ += bytes.size();
}

void ZipWriter::begin_record() {
  if (checksums_.size() == layout_.records().size()) throw std::logic_error("more records than the archive's layout has");
  send(local_header(layout_.records()[checksums_.size()]));
  record_bytes_ = 0;
  checksum_ = 0;
  in_record_ = true;
}

void ZipWriter::end_record() {
  send(descriptor(layout_.records()[checksums_.size()], checksum_));
  checksums_.push_back(checksum_);
  in_record_ = false;
}

void ZipWriter::append(std::span<const std::byte> bytes) {
  constexpr size_t kPiece = size_t{1} << 20;  // hashed, then written while still in the cache
  if (!in_record_) begin_record();
  const Record& record = layout_.records()[checksums_.size()];
  if (bytes.size() > record.size - record_bytes_) throw std::logic_error("a record is larger than the archive's layout says: " + record.name);
  record_bytes_ += bytes.size();
  position_ += bytes.size();
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(kPiece, bytes.size()));
    checksum_ = crc32_gzip_refl(checksum_, reinterpret_cast<const unsigned char*>(piece.data()), piece.size());
    sink_.append(piece);
    bytes = bytes.subspan(piece.size());
  }
  if (record_bytes_ == record.size) end_record();
}

void ZipWriter::finish() {
  if (in_record_ || checksums_.size() != layout_.records().size()) throw std::logic_error("an archive is finished before its last record");
  std::string directory;
  for (size_t i = 0; i < checksums_.size(); ++i) directory += central_header(layout_.records()[i], checksums_[i]);
  const uint64_t size = directory.size();
  directory += end_records(checksums_.size(), position_, size);
  send(directory);
}

}  // namespace archive
}  // namespace marlin
