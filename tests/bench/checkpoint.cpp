// checkpoint: what saving, opening, verifying and loading cost for a state of 512 MiB, against the plain system calls.
//
//   marlin_bench checkpoint [--dir FOLDER] [--peers]     new files are made in FOLDER (default: a temporary folder) and removed again
//
// One intra-op thread. Everything that is timed has been checked to be right before. Saving in the background is in
// checkpoint_async.cpp, and what Python's libraries take for the same in checkpoint_peers.cpp.
#include <fcntl.h>
#include <marlin/checkpointers/archive_reader.h>
#include <marlin/checkpointers/default_checkpointer.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "checkpoint_parts.h"

namespace marlin::bench {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPiece = size_t{4} << 20;

// 32 layers of weights of 2048x2048 floats and their biases; the middle of what models are made of.
StateDict make_state() {
  torch::manual_seed(1);
  StateDict model;
  for (int64_t i = 0; i < 32; ++i) {
    model.set("layers." + std::to_string(i) + ".weight", torch::randn({2048, 2048}));
    model.set("layers." + std::to_string(i) + ".bias", torch::randn({2048}));
  }
  return model;
}

Checkpoint checkpoint_of(const StateDict& model) { return {model, {{"last_epoch", 0}}, {{"global_step_completed", 1}}, {}}; }

// The same bytes as they lie in memory, in pieces of 4 MiB: what the simplest program would do.
void raw_write(const fs::path& file, const StateDict& state, bool sync) {
  const int out = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  require(out >= 0, "a file can be written");
  for (const StateDict::Entry& entry : state) {
    const at::Tensor& tensor = entry.value.as_tensor();
    const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
    for (size_t at = 0; at < tensor.nbytes(); at += kPiece) {
      const size_t size = std::min(kPiece, tensor.nbytes() - at);
      require(::write(out, bytes + at, size) == static_cast<ssize_t>(size), "all of a piece is written");
    }
  }
  require(!sync || ::fsync(out) == 0, "it can be synced");
  ::close(out);
}

void read_into(const fs::path& file, char* memory, size_t size) {
  const int in = ::open(file.c_str(), O_RDONLY);
  require(in >= 0, "a file can be read");
  for (size_t at = 0; at < size;) {
    const ssize_t got = ::read(in, memory + at, std::min(kPiece, size - at));
    require(got > 0, "all of it is read");
    at += static_cast<size_t>(got);
  }
  ::close(in);
}

// Each block makes a file that was not there; taking the old one away is not timed.
Contender writes(const std::string& name, const fs::path& file, const std::function<void()>& write) {
  return {name, [file, write] {
            fs::remove(file);
            return seconds_of(write);
          }};
}

void check_results(const fs::path& file, const Checkpoint& saved, const StateDict& live) {
  Verified verified = Verified::kNothing;
  const Checkpoint read = read_checkpoint(file, Verify::kFull, &verified);
  require(verified == Verified::kHashes && equal(read.module_interface_state, saved.module_interface_state), "what was saved is read back");
  ArchiveReader(file).load_into({{"module_interface_state", live}});
  require(equal(live, saved.module_interface_state), "what was saved is loaded into tensors that exist");
}

bool judge_writes(const Folder& folder, const Checkpoint& checkpoint) {
  const StateDict& model = checkpoint.module_interface_state;
  const fs::path raw = folder / "raw", saved = folder / "checkpoint_0.pt";
  const auto save = [&](Durability durability) { return [&, durability] { write_checkpoint(saved, checkpoint, {}, durability); }; };
  std::vector<Contender> unsynced = {writes("raw_write", raw, [&] { raw_write(raw, model, false); }), writes("save_unsynced", saved, save(Durability::kUnsynced))};
  settle();
  run_interleaved(unsynced, blocks(kCheckpointBlocks));
  std::vector<Contender> durable = {writes("raw_write_fsync", raw, [&] { raw_write(raw, model, true); }), writes("save_durable", saved, save(Durability::kDurable))};
  settle();
  run_interleaved(durable, blocks(kCheckpointBlocks));
  fs::remove(raw);
  for (const auto& group : {unsynced, durable}) {
    for (const Contender& contender : group) print_csv("checkpoint", contender, 1e3);
  }
  print_ratio("checkpoint", "save without fsync / raw write", unsynced[1], unsynced[0]);
  print_ratio("checkpoint", "durable save / raw write + fsync", durable[1], durable[0]);
  bool ok = print_bound("checkpoint", "save without fsync / raw write", median_ratio(unsynced[1], unsynced[0]), 0.9);
  ok &= print_bound("checkpoint", "durable save / raw write + fsync", median_ratio(durable[1], durable[0]), 0.6);
  return ok;
}

bool judge_reads(const fs::path& file, const StateDict& live) {
  const size_t size = fs::file_size(file);
  const std::unique_ptr<char[]> memory(new char[size]);
  std::memset(memory.get(), 1, size);
  const auto read_to_new = [&] {
    const std::unique_ptr<char[]> fresh(new char[size]);
    read_into(file, fresh.get(), size);
  };
  std::vector<Contender> contenders = {
      {"read_into_new_memory", [&] { return seconds_of(read_to_new); }},
      {"read_into_old_memory", [&] { return seconds_of([&] { read_into(file, memory.get(), size); }); }},
      {"verify_full", [&] { return seconds_of([&] { ArchiveReader reader(file); }); }},
      {"open_unverified", [&] { return seconds_of([&] { static_cast<void>(read_checkpoint(file, Verify::kOff)); }); }},
      {"load_verified", [&] { return seconds_of([&] { ArchiveReader(file).load_into({{"module_interface_state", live}}); }); }},
  };
  run_interleaved(contenders, blocks(kCheckpointBlocks));
  for (const Contender& contender : contenders) print_csv("checkpoint", contender, 1e3);
  print_ratio("checkpoint", "full verification / read into new memory", contenders[2], contenders[0]);
  print_ratio("checkpoint", "full verification / read once into memory that is there", contenders[2], contenders[1]);
  print_ratio("checkpoint", "verified load into tensors / read into new memory", contenders[4], contenders[0]);
  bool ok = print_bound("checkpoint", "full verification / read once into memory that is there", median_ratio(contenders[2], contenders[1]), 0.8);
  ok &= print_bound("checkpoint", "open without verification (ms)", median(contenders[3].seconds) * 1e3, 10.0);
  return ok;
}

// 10,000 names of which all but the newest are empty files: they would be told as broken if they were looked at.
bool judge_newest(const Folder& folder) {
  const fs::path many = folder / "many";
  fs::create_directory(many);
  constexpr int64_t kFiles = 10'000;
  for (int64_t i = 0; i + 1 < kFiles; ++i) std::ofstream(many / ("checkpoint_" + std::to_string(i) + ".pt"));
  write_checkpoint(many / ("checkpoint_" + std::to_string(kFiles - 1) + ".pt"), checkpoint_of({{"weight", torch::ones({3})}}), {});
  DefaultCheckpointerOptions options;
  options.save_dir = options.load_dir.emplace(many.string());
  DefaultCheckpointer checkpointer(options);
  require(fs::path(checkpointer.load().source).filename() == "checkpoint_9999.pt", "the newest is found");
  std::vector<Contender> contenders = {{"newest_of_10000", [&] { return seconds_of([&] { static_cast<void>(checkpointer.load()); }); }}};
  run_interleaved(contenders, blocks(kCheckpointBlocks));
  print_csv("checkpoint", contenders[0], 1e3);
  return print_bound("checkpoint", "newest of 10000 files (ms)", median(contenders[0].seconds) * 1e3, 100.0);
}

}  // namespace

bool checkpoint() {
  at::set_num_threads(1);
  const Folder folder(option("dir", fs::temp_directory_path().string()));
  const Checkpoint saved = checkpoint_of(make_state());
  const fs::path file = folder / "checkpoint_0.pt";
  // The first save of the process: nothing is in buffers of an earlier one.
  const PeakMemory memory;
  write_checkpoint(file, saved, {});
  const double memory_mib = memory.added_mib();
  const StateDict live = clone(saved.module_interface_state);
  for (const StateDict::Entry& entry : live) entry.value.as_tensor().zero_();
  check_results(file, saved, live);

  print_machine("checkpoint", "bytes=" + std::to_string(fs::file_size(file)) + " seed=1 warmup=1 blocks=" + std::to_string(blocks(kCheckpointBlocks)) + " dir=" + (folder / "").string());
  print_csv_header("ms");
  bool ok = judge_writes(folder, saved);
  ok &= judge_reads(file, live);
  ok &= judge_newest(folder);
  ok &= print_bound("checkpoint", "memory added by a save (MiB)", memory_mib, 64.0);
  ok &= judge_background_saves(folder);
  if (!option("peers", "").empty()) ok &= judge_peers(folder, file, saved, live);
  return ok;
}

}  // namespace marlin::bench
