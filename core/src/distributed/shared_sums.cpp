#include "distributed/shared_sums.h"

#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kPart = 16 << 20;      // bytes of each rank
constexpr uint64_t kPiece = kPart / 4;    // at most; so that one can be copied in while another is summed
constexpr uint64_t kSmall = 16 << 10;     // up to here everybody sums alone: one wait less
constexpr uint64_t kLine = 64;
constexpr uint64_t kMostPieces = 256;     // of a rank at a time
constexpr int kMostRanks = 64;
constexpr int kSpins = 2000;              // some 20 us; then the core is given away
constexpr auto kLook = std::chrono::milliseconds(20);

uint64_t aligned(uint64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// More ranks than cores: whoever spins keeps the one from running that he waits for.
int spins_for(int size) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) >= size ? kSpins : 0;
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::string random_name() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string name = "/marlin-";
  for (int i = 0; i < 24; ++i) name += kDigits[random() & 15];
  return name;
}

uint64_t signature_of(const at::Tensor& elements) { return elements.nbytes() << 8 | static_cast<uint64_t>(elements.scalar_type()); }

}  // namespace

struct SharedSums::Counters {
  alignas(kLine) std::atomic<uint64_t> published;  // pieces that are in this rank's part
  std::atomic<uint64_t> summed;                    // whose slice this rank has summed
  std::atomic<uint64_t> done;                      // that this rank no longer reads
  std::atomic<uint64_t> signatures[kMostPieces];
};

struct SharedSums::File {
  alignas(kLine) std::atomic<uint32_t> bell;       // rung with every change of a counter
  alignas(kLine) std::atomic<uint32_t> sleepers;
  Counters ranks[kMostRanks];
  alignas(4096) char parts[1];                     // kPart of each rank

  [[nodiscard]] static size_t bytes(int size) { return offsetof(File, parts) + static_cast<size_t>(size) * kPart; }
};

std::string SharedSums::create(int size) {
  if (size > kMostRanks) return {};
  std::string name = random_name();
  const int descriptor = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) return {};
  // All of it is taken now: a page that cannot be had later would be a SIGBUS. It comes as zeros, which is what counters begin with.
  const bool fits = posix_fallocate(descriptor, 0, static_cast<off_t>(File::bytes(size))) == 0;
  close(descriptor);
  if (fits) return name;
  forget(name);
  return {};
}

void SharedSums::forget(const std::string& name) noexcept { shm_unlink(name.c_str()); }

std::unique_ptr<SharedSums> SharedSums::open(const std::string& name, int rank, int size) {
  const int descriptor = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
  if (descriptor < 0) return nullptr;
  void* memory = mmap(nullptr, File::bytes(size), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  // The lock goes with the process, however that ends.
  struct flock lock {};
  lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET, lock.l_start = rank, lock.l_len = 1;
  if (memory != MAP_FAILED && fcntl(descriptor, F_OFD_SETLK, &lock) == 0) return std::unique_ptr<SharedSums>(new SharedSums(descriptor, memory, rank, size));
  if (memory != MAP_FAILED) munmap(memory, File::bytes(size));
  close(descriptor);
  return nullptr;
}

SharedSums::SharedSums(int descriptor, void* memory, int rank, int size) : descriptor_(descriptor), file_(static_cast<File*>(memory)), rank_(rank), size_(size), spins_(spins_for(size)) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);
}

SharedSums::~SharedSums() {
  munmap(file_, File::bytes(size_));
  close(descriptor_);
}

char* SharedSums::part(int rank, const Piece& piece) const { return file_->parts + static_cast<uint64_t>(rank) * kPart + piece.place % kPart; }

at::Tensor SharedSums::part_of(int rank, const Piece& piece, int64_t begin, int64_t end) const {
  return at::from_blob(part(rank, piece) + begin * piece.elements.element_size(), {end - begin}, piece.elements.options());
}

uint64_t SharedSums::begin(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().view(-1);
  const auto most = static_cast<int64_t>(kPiece) / flat.element_size();
  for (int64_t begin = 0; begin < flat.numel(); begin += most) {
    Piece piece{flat.narrow(0, begin, std::min(most, flat.numel() - begin))};
    const uint64_t bytes = aligned(piece.elements.nbytes());
    if (end_ % kPart + bytes > kPart) end_ = (end_ / kPart + 1) * kPart;  // it lies in one piece
    piece.place = end_;
    end_ += bytes;
    taken_.emplace_back(begun_, piece.place);
    pieces_.push_back(std::move(piece));
    // In their order, so that one number says which ones are there.
    const bool next = pieces_.size() == 1 || pieces_[pieces_.size() - 2].published;
    if (next && has_room(pieces_.back(), begun_)) publish(pieces_.back(), begun_);
    ++begun_;
  }
  return begun_;
}

bool SharedSums::has_room(const Piece& piece, uint64_t number) {
  uint64_t done = ended_;
  for (int rank = 0; rank < size_; ++rank) done = std::min(done, file_->ranks[rank].done.load(std::memory_order_acquire));
  while (!taken_.empty() && taken_.front().first < done) taken_.pop_front();
  const auto& [oldest, place] = taken_.front();  // this piece itself, if there is no other
  return piece.place + aligned(piece.elements.nbytes()) <= place + kPart && number < oldest + kMostPieces;
}

void SharedSums::publish(Piece& piece, uint64_t number) {
  std::memcpy(part(rank_, piece), piece.elements.const_data_ptr(), piece.elements.nbytes());
  Counters& mine = file_->ranks[rank_];
  mine.signatures[number % kMostPieces].store(signature_of(piece.elements), std::memory_order_relaxed);
  mine.published.store(number + 1, std::memory_order_release);
  piece.published = true;
  ring();
}

void SharedSums::finish(uint64_t sum, const Look& look) {
  while (ended_ < sum) {
    end_piece(pieces_.front(), ended_, look);
    pieces_.pop_front();
    ++ended_;
  }
  for (uint64_t number = ended_; number < begun_; ++number) {  // for what there was no room
    Piece& piece = pieces_[number - ended_];
    if (piece.published) continue;
    if (!has_room(piece, number)) break;
    publish(piece, number);
  }
}

void SharedSums::end_piece(Piece& piece, uint64_t number, const Look& look) {
  Counters& mine = file_->ranks[rank_];
  if (!piece.published) {
    wait([&] { return has_room(piece, number); }, look);
    publish(piece, number);
  }
  wait_for_all(&Counters::published, number, look);
  check_signatures(piece, number);
  sum_slice(piece);
  if (piece.elements.nbytes() > kSmall) {
    mine.summed.store(number + 1, std::memory_order_release);
    ring();
    wait_for_all(&Counters::summed, number, look);
    take_slices(piece);
  }
  mine.done.store(number + 1, std::memory_order_release);
  ring();
}

// Of a small piece all of it. A sum lies in the tensor, and a slice that others take also in this rank's part, where nobody else reads that slice before.
void SharedSums::sum_slice(const Piece& piece) const {
  const at::NoGradGuard no_grad;
  const int64_t count = piece.elements.numel();
  const bool small = piece.elements.nbytes() <= kSmall;
  const int64_t begin = small ? 0 : count * rank_ / size_, end = small ? count : count * (rank_ + 1) / size_;
  if (begin == end) return;
  at::Tensor sum = piece.elements.narrow(0, begin, end - begin);
  at::add_out(sum, part_of(0, piece, begin, end), part_of(1, piece, begin, end));
  for (int rank = 2; rank < size_; ++rank) sum.add_(part_of(rank, piece, begin, end));
  if (!small) std::memcpy(part(rank_, piece) + begin * piece.elements.element_size(), sum.const_data_ptr(), sum.nbytes());
}

void SharedSums::take_slices(const Piece& piece) const {
  const int64_t count = piece.elements.numel(), size = piece.elements.element_size();
  auto* into = static_cast<char*>(piece.elements.data_ptr());
  for (int rank = 0; rank < size_; ++rank) {
    const int64_t begin = count * rank / size_, end = count * (rank + 1) / size_;
    if (rank != rank_) std::memcpy(into + begin * size, part(rank, piece) + begin * size, static_cast<size_t>((end - begin) * size));
  }
}

void SharedSums::check_signatures(const Piece& piece, uint64_t number) const {
  const uint64_t ours = signature_of(piece.elements);
  for (int rank = 0; rank < size_; ++rank) {
    const uint64_t theirs = file_->ranks[rank].signatures[number % kMostPieces].load(std::memory_order_relaxed);
    if (theirs == ours) continue;
    throw Error(Errc::kTraining, concat("ranks sum tensors that are not alike: rank ", rank_, " one of ", ours >> 8, " bytes of type ", static_cast<at::ScalarType>(ours & 255), ", rank ", rank, " one of ",
                                        theirs >> 8, " bytes of type ", static_cast<at::ScalarType>(theirs & 255), ": all must make the same calls in the same order"));
  }
}

// In this order it is either the sleeper who sees the bell, or the other one who sees the sleeper.
void SharedSums::ring() {
  file_->bell.fetch_add(1, std::memory_order_seq_cst);
  if (file_->sleepers.load(std::memory_order_seq_cst) > 0) syscall(SYS_futex, &file_->bell, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

template <class Ready>
void SharedSums::wait(const Ready& ready, const Look& look) {
  for (int i = 0; i < spins_; ++i) {
    if (ready()) return;
    pause();
  }
  const auto begin = Clock::now();
  auto looked = begin;
  while (true) {
    const uint32_t bell = file_->bell.load(std::memory_order_seq_cst);
    if (ready()) return;
    const timespec time{0, std::chrono::nanoseconds(kLook).count()};
    file_->sleepers.fetch_add(1, std::memory_order_seq_cst);
    syscall(SYS_futex, &file_->bell, FUTEX_WAIT, bell, &time, nullptr, 0);
    file_->sleepers.fetch_sub(1, std::memory_order_seq_cst);
    if (const auto now = Clock::now(); now - looked >= kLook) {
      looked = now;
      if (const bool lost = is_lost(); !ready()) look(now - begin, lost);  // it may have been its last act
    }
  }
}

template <class Counter>
void SharedSums::wait_for_all(Counter counter, uint64_t number, const Look& look) {
  wait([&] {
    for (int rank = 0; rank < size_; ++rank) {
      if ((file_->ranks[rank].*counter).load(std::memory_order_acquire) <= number) return false;
    }
    return true;
  }, look);
}

bool SharedSums::is_lost() const {
  for (int rank = 0; rank < size_; ++rank) {
    struct flock lock {};
    lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET, lock.l_start = rank, lock.l_len = 1;
    if (rank != rank_ && fcntl(descriptor_, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK) return true;
  }
  return false;
}

}  // namespace marlin::distributed
