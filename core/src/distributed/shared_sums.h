// Sums over the ranks of one machine, through memory that they share.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>

namespace marlin::distributed {

/// A file in memory that all ranks have mapped. A sum: each rank copies its tensor into its part of the file, sums a slice of the parts of all, and copies the
/// others' slices; small tensors everybody sums alone. Ranks add in the order of their numbers, so all have the same bits. Nothing runs in the background: begin() hands
/// this rank's part over, if there is room, and finish() does the rest. No system call is made while nobody has to wait.
///
/// All ranks begin the same sums in the same order, and end them in that order. One thread at a time.
class SharedSums {
 public:
  /// Called now and then while a rank waits for another; ends the wait by throwing. @param lost a rank that is waited for has closed the file: its process has ended.
  using Look = std::function<void(std::chrono::steady_clock::duration waited, bool lost)>;

  /// Rank 0 makes the file. @return its name; empty: there is no room for it, or no such thing here.
  [[nodiscard]] static std::string create(int size);
  /// Once all have opened it, or failed to.
  static void forget(const std::string& name) noexcept;
  /// @return null: there is no such file on this machine.
  [[nodiscard]] static std::unique_ptr<SharedSums> open(const std::string& name, int rank, int size);
  ~SharedSums();
  SharedSums(const SharedSums&) = delete;
  SharedSums& operator=(const SharedSums&) = delete;

  /// @return what finish() takes.
  uint64_t begin(const at::Tensor& tensor);
  /// Ends this sum, and those that were begun before it. @throws Error kTraining: another rank's tensor has another size or type. What `look` throws.
  void finish(uint64_t sum, const Look& look);
  /// Ends all that were begun.
  void finish_all(const Look& look) { finish(begun_, look); }

 private:
  struct Counters;
  struct File;
  struct Piece {                   // of a tensor: as much as is summed at once
    at::Tensor elements;           // flat; a view
    uint64_t place = 0;            // in each rank's part, as if it had no end
    bool published = false;
  };

  SharedSums(int descriptor, void* memory, int rank, int size);
  [[nodiscard]] char* part(int rank, const Piece& piece) const;
  [[nodiscard]] at::Tensor part_of(int rank, const Piece& piece, int64_t begin, int64_t end) const;
  [[nodiscard]] bool has_room(const Piece& piece, uint64_t number);
  void publish(Piece& piece, uint64_t number);
  void end_piece(Piece& piece, uint64_t number, const Look& look);
  void sum_slice(const Piece& piece) const;
  void take_slices(const Piece& piece) const;
  void check_signatures(const Piece& piece, uint64_t number) const;
  template <class Ready> void wait(const Ready& ready, const Look& look);
  template <class Counter> void wait_for_all(Counter counter, uint64_t number, const Look& look);
  void ring();
  [[nodiscard]] bool is_lost() const;

  const int descriptor_;
  File* const file_;
  const int rank_, size_;
  const int spins_;
  uint64_t begun_ = 0, ended_ = 0;           // pieces
  uint64_t end_ = 0;                         // of the last piece, in each rank's part, as if it had no end
  std::deque<Piece> pieces_;                 // begun and not ended, from number ended_ on
  std::deque<std::pair<uint64_t, uint64_t>> taken_;  // number and place of pieces that a rank may still read
};

}  // namespace marlin::distributed
