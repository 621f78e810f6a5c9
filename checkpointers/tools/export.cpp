// marlin-ckpt export FILE OUT.safetensors
#include <iostream>
#include <system_error>

#include "commands.h"
#include "contents.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

namespace fs = std::filesystem;

// The tensors of a state by their dotted paths; what else there is has no place in such a file, and is counted.
struct Flat {
  std::vector<NamedTensor> tensors;
  uint64_t others = 0;

  void add(const StateDict& dict, const std::string& path) {
    for (const StateDict::Entry& entry : dict) add(entry.value, joined(path, marlin::to_string(entry.key)));
  }

 private:
  void add(const Value& value, const std::string& path) {
    if (const auto* dict = value.get_if<StateDict>()) return add(*dict, path);
    if (const auto* tensor = value.get_if<at::Tensor>()) return tensors.push_back({path, *tensor});
    if (!is_container(value)) return static_cast<void>(++others);
    size_t place = 0;
    for (const Value& item : value.as_items()) add(item, joined(path, std::to_string(place++)));
  }
};

// Values there are texts.
SafetensorsMetadata metadata_of(const StateDict& root, const std::optional<CommitRecord>& record) {
  SafetensorsMetadata metadata = {{"format", "pt"}};  // so that Python's readers know whose tensors these are
  if (!record) return metadata;
  const Summary summary = summarise(root, record);
  metadata.emplace_back("kind", summary.kind);
  if (summary.epoch) metadata.emplace_back("epoch", std::to_string(*summary.epoch));
  if (summary.global_step) metadata.emplace_back("global_step", std::to_string(*summary.global_step));
  if (!summary.run_id.empty()) metadata.emplace_back("run_id", summary.run_id);
  if (!record->marlin_version.empty()) metadata.emplace_back("marlin_version", record->marlin_version);
  if (!record->torch_version.empty()) metadata.emplace_back("torch_version", record->torch_version);
  if (!summary.metrics.empty()) metadata.emplace_back("metrics", to_json(summary.metrics).dump());
  return metadata;
}

void check_target(const fs::path& file, const fs::path& out, bool force) {
  std::error_code error;
  if (!fs::exists(out, error)) return;
  if (fs::is_directory(out, error)) throw Error(Errc::kInvalidArgument, concat("'", out.string(), "' is a folder"));
  if (fs::equivalent(file, out, error)) throw Error(Errc::kInvalidArgument, concat("'", out.string(), "' is the checkpoint itself"));
  if (!force) throw Error(Errc::kInvalidArgument, concat("'", out.string(), "' is there already; --force replaces it"));
}

std::string checked_part(const std::string& part) {
  if (part == "module" || part == "all") return part;
  throw Error(Errc::kInvalidArgument, concat("--part: must be module or all, got '", part, "'"));
}

const StateDict& part_of(const StateDict& root, const std::string& part) {
  if (part == "all" || !is_full(root)) return root;
  static const StateDict kNone;
  const auto* dict = root.at("module_interface_state").get_if<StateDict>();
  return dict == nullptr ? kNone : *dict;
}

int run(const Arguments& arguments) {
  const fs::path file = arguments.file(0);
  const fs::path out = arguments.word(1);
  const std::string part = checked_part(arguments.text("part", "module"));
  check_target(file, out, arguments.has("force"));
  const Archive archive = read_archive(file);
  Flat flat;
  flat.add(part_of(archive.root, part), "");
  if (flat.tensors.empty()) throw Error(Errc::kUnsupported, concat(file.string(), ": there is no tensor to export"));
  const uint64_t num_tensors = flat.tensors.size();
  uint64_t size = 0;
  try {
    size = write_safetensors(out, std::move(flat.tensors), metadata_of(archive.root, archive.record), Hashes::kNone).size_bytes;
  } catch (const Error& error) {
    if (error.code() != Errc::kUnsupported) throw;
    throw Error(error.code(), concat(file.string(), ": ", error.what()));
  }
  if (arguments.has("json")) {
    print({{"file", file.string()},
           {"out", out.string()},
           {"part", part},
           {"tensors", num_tensors},
           {"bytes", size},
           {"values_left_out", flat.others}});
    return kGood;
  }
  std::cout << "wrote " << printable(out.string()) << ": " << counted(num_tensors, "tensor") << ", " << human_size(size) << '\n';
  if (flat.others > 0) std::cout << "note: left out, as no tensor: " << counted(flat.others, "value") << '\n';
  return kGood;
}

}  // namespace

Command export_command() {
  return {"export", {"FILE", "OUT.safetensors"}, "The tensors as a safetensors file.",
          "Writes the tensors by their dotted names: of a whole state the module's alone, named as in the model (\"net.0.weight\"); with\n"
          "--part all every tensor (\"trainer_state.optimizers.0.state.0.exp_avg\"). Run, epoch, step and metrics go into __metadata__.\n"
          "FILE is verified in full first, and OUT is whole under its name or not there. Values that are no tensors are left out;\n"
          "complex tensors and others that the format lacks are refused by name.",
          {{"part", "PART", "module (if not given) or all; of a file that is no whole state, both are all of it."},
           {"force", "", "Replace OUT if it is there."}},
          &run};
}

}  // namespace marlin::ckpt
