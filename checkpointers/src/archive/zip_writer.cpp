#include "archive/zip_writer.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <stdexcept>

#include "archive/two_threads.h"

namespace marlin::archive {
namespace {

using Record = ZipLayout::Record;

constexpr uint64_t kPiece = uint64_t{1} << 20;  // fits the cache; calls of 4 MiB and more take erratic times
constexpr uint64_t kFlush = uint64_t{8} << 20;

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

// Writes on from a place in the file: large pieces as they come, small ones gathered.
class ZipWriter::Pieces {
 public:
  Pieces(WritableFile& file, uint64_t position, bool start_flush) : file_(file), position_(position), flushed_(position), start_flush_(start_flush) {}

  /// Where the next byte goes.
  [[nodiscard]] uint64_t position() const noexcept { return position_ + gathered_.size(); }

  void append(std::span<const std::byte> bytes) {
    if (gathered_.size() + bytes.size() < kPiece / 2) {
      gathered_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      return;
    }
    send_gathered();
    send(bytes);
  }
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }

  void finish() {
    send_gathered();
    if (start_flush_ && position_ > flushed_) file_.start_flush(flushed_, position_ - flushed_);
  }

 private:
  void send_gathered() {
    send(std::as_bytes(std::span(gathered_)));
    gathered_.clear();
  }
  void send(std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    file_.write_at(position_, bytes);
    position_ += bytes.size();
    if (!start_flush_ || position_ - flushed_ < kFlush) return;
    file_.start_flush(flushed_, position_ - flushed_);
    flushed_ = position_;
  }

  WritableFile& file_;
  uint64_t position_;  // of what was sent
  uint64_t flushed_;
  bool start_flush_;
  std::string gathered_;
};

// Records that one thread writes one after the other.
struct ZipWriter::Unit {
  size_t begin, end;
  uint64_t size_bytes;
};

ZipWriter::ZipWriter(WritableFile& file, const ZipLayout& layout, bool start_flush)
    : file_(file), layout_(layout), start_flush_(start_flush), digests_(layout.records().size()) {}
ZipWriter::~ZipWriter() = default;

// Small neighbours together, so that they make one write; the largest first, so that both threads end at the same time.
std::vector<ZipWriter::Unit> ZipWriter::units(size_t end) const {
  const std::vector<Record>& records = layout_.records();
  std::vector<Unit> units;
  for (size_t i = next_; i < end; ++i) {
    const uint64_t size = (i + 1 < records.size() ? records[i + 1].header : layout_.directory_offset()) - records[i].header;
    if (!units.empty() && units.back().size_bytes + size < kPiece / 2) {
      units.back().end = i + 1;
      units.back().size_bytes += size;
    } else {
      units.push_back({i, i + 1, size});
    }
  }
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.size_bytes > b.size_bytes; });
  return units;
}

void ZipWriter::write(const std::vector<RecordSource>& sources) {
  const size_t first = next_, end = next_ + sources.size();
  if (tail_ != nullptr || end > digests_.size()) throw std::logic_error("more records than the archive's layout has here");
  const std::vector<Unit> todo = units(end);
  uint64_t total = 0;
  for (const Unit& unit : todo) total += unit.size_bytes;
  for_each_on_two_threads(todo.size(), total >= kWorthAThread, [&](size_t i) {
    Pieces out(file_, layout_.records()[todo[i].begin].header, start_flush_);
    for (size_t record = todo[i].begin; record < todo[i].end; ++record) {
      const RecordBytes content = sources[record - first]();
      write_record(record, content.bytes, out);
    }
    out.finish();
  });
  next_ = end;
}

// Pieces end where 1 MiB of the file does, so that no two writes share a page.
void ZipWriter::write_record(size_t index, std::span<const std::byte> bytes, Pieces& out) {
  const Record& record = layout_.records()[index];
  if (bytes.size() != record.size) throw std::logic_error("a record is not as large as the archive's layout says: " + record.name);
  out.append(local_header(record));
  Hasher hasher;
  uint32_t checksum = 0;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<uint64_t>(bytes.size(), kPiece - out.position() % kPiece));
    hasher.update(piece);
    checksum = crc32_gzip_refl(checksum, reinterpret_cast<const unsigned char*>(piece.data()), piece.size());
    out.append(piece);
    bytes = bytes.subspan(piece.size());
  }
  out.append(descriptor(record, checksum));
  digests_[index] = {checksum, hasher.digest()};
}

void ZipWriter::append(std::string_view text) {
  if (next_ == digests_.size()) throw std::logic_error("more records than the archive's layout has");
  if (tail_ == nullptr) tail_ = std::make_unique<Pieces>(file_, layout_.records()[next_].header, start_flush_);
  write_record(next_, std::as_bytes(std::span(text)), *tail_);
  ++next_;
}

void ZipWriter::finish() {
  if (next_ != digests_.size()) throw std::logic_error("an archive is finished before its last record");
  std::string directory;
  for (size_t i = 0; i < next_; ++i) directory += central_header(layout_.records()[i], digests_[i].checksum);
  const uint64_t size = directory.size();
  directory += end_records(next_, layout_.directory_offset(), size);
  if (tail_ == nullptr) tail_ = std::make_unique<Pieces>(file_, layout_.directory_offset(), start_flush_);
  tail_->append(directory);
  tail_->finish();
}

}  // namespace marlin::archive
