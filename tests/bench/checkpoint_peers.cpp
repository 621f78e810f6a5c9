// The part of `checkpoint` that compares with Python's libraries, in peers_checkpoint.py.
#include <marlin/checkpointers/archive_reader.h>
#include <marlin/checkpointers/default_checkpointer.h>

#include <cstring>
#include <memory>

#include "checkpoint_parts.h"
#include "python_peer.h"

namespace marlin::bench {
namespace {

namespace fs = std::filesystem;

// malloc would keep what clones of the single tensors give back, and the next one would find it mapped.
void clone_into_fresh_memory(const StateDict& state) {
  size_t size = 0;
  for (const StateDict::Entry& entry : state) size += entry.value.as_tensor().nbytes();
  const std::unique_ptr<char[]> memory(new char[size]);
  char* to = memory.get();
  for (const StateDict::Entry& entry : state) {
    const at::Tensor& tensor = entry.value.as_tensor();
    std::memcpy(to, tensor.const_data_ptr(), tensor.nbytes());
    to += tensor.nbytes();
  }
}

}  // namespace

bool judge_peers(const Folder& folder, const fs::path& file, const Checkpoint& saved, const StateDict& live) {
  const fs::path ours = folder / "against_peers.pt";
  Python python("peers_checkpoint.py", {file.string(), (folder / "").string()});
  require(equal(read_checkpoint(folder / "by_torch.pt").module_interface_state, saved.module_interface_state), "both sides save the same state");
  const auto save = [&] {
    settle();  // of what the peers' blocks made and removed
    const double seconds = seconds_of([&] { write_checkpoint(ours, saved, {}, Durability::kUnsynced); });
    fs::remove(ours);
    return seconds;
  };
  std::vector<Contender> contenders = {
      {"save_unsynced_beside_peers", save},
      python.contender("torch_save"),
      python.contender("ignite_disk_saver"),
      {"load_verified_beside_peers", [&] { return seconds_of([&] { ArchiveReader(file).load_into({{"module_interface_state", live}}); }); }},
      python.contender("torch_load"),
      python.contender("torch_load_again"),
      python.contender("dcp_async_save_call"),
      {"clone_beside_peers", [&] { return seconds_of([&] { clone_into_fresh_memory(saved.module_interface_state); }); }},
  };
  settle();
  run_interleaved(contenders, blocks(kCheckpointBlocks));
  std::printf("# peers %s threads=1\n", python.works_with().c_str());
  for (const Contender& contender : contenders) print_csv("checkpoint", contender, 1e3);
  print_ratio("checkpoint", "save without fsync / torch.save", contenders[0], contenders[1]);
  print_ratio("checkpoint", "save without fsync / Ignite's DiskSaver", contenders[0], contenders[2]);
  print_ratio("checkpoint", "verified load into tensors / torch.load", contenders[3], contenders[4]);
  print_ratio("checkpoint", "verified load into tensors / torch.load into memory of an earlier one", contenders[3], contenders[5]);
  print_ratio("checkpoint", "call of dcp.async_save / clone", contenders[6], contenders[7]);
  bool ok = print_bound("checkpoint", "save without fsync / torch.save", median_ratio(contenders[0], contenders[1]), 0.5);
  ok &= print_bound("checkpoint", "verified load into tensors / torch.load", median_ratio(contenders[3], contenders[4]), 0.4);
  return ok;
}

}  // namespace marlin::bench
