// marlin-ckpt ls DIR
#include <algorithm>
#include <exception>
#include <iostream>
#include <limits>
#include <map>

#include "commands.h"
#include "contents.h"
#include "folder.h"
#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/json.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

using Form = CheckpointNames::Form;

struct Listed {
  NamedFile file;
  Summary summary;
  std::string problem;  // why it cannot be opened; empty: it can
  double order = 0;     // the step that it is of, as far as can be told
};

Listed open(NamedFile file) {
  Listed listed{std::move(file), {}, {}};
  try {
    ArchiveReader reader(listed.file.path, Verify::kOff);
    listed.summary = summarise(reader.state(), reader.record());
  } catch (const std::exception& error) {
    listed.problem = reason(listed.file.path, error.what());
  }
  return listed;
}

// Numbers of epoch files and steps cannot be compared. A file that does not say its step stands by its number among the epoch
// files of its prefix: a model beside its epoch's checkpoint, a broken file after the next newer one. `files`: as named_files()
// has them.
void put_in_order(std::vector<Listed>& files) {
  std::map<std::string, std::map<int64_t, double>> steps_of_epochs;  // by prefix
  for (Listed& listed : files) {
    auto& steps = steps_of_epochs[listed.file.prefix];
    const auto newer = steps.lower_bound(listed.file.index);
    listed.order = std::numeric_limits<double>::infinity();
    if (newer != steps.end()) listed.order = newer->second - (newer->first == listed.file.index ? 0 : 1);
    if (listed.file.form == Form::kStep || listed.file.form == Form::kSuspect) listed.order = static_cast<double>(listed.file.index);
    if (listed.summary.global_step) listed.order = static_cast<double>(*listed.summary.global_step);
    if (listed.file.form == Form::kEpoch) steps[listed.file.index] = listed.order;
  }
  std::stable_sort(files.begin(), files.end(), [](const Listed& a, const Listed& b) {
    return a.file.prefix != b.file.prefix ? a.file.prefix < b.file.prefix : a.order > b.order;
  });
}

Json file_to_json(const Listed& listed) {
  Json json = {{"file", listed.file.path.filename().string()},
               {"form", to_string(listed.file.form)},
               {"index", listed.file.index},
               {"bytes", listed.file.size_bytes},
               {"opens", listed.problem.empty()}};
  if (!listed.problem.empty()) {
    json["problem"] = listed.problem;
    return json;
  }
  const Summary& summary = listed.summary;
  json["kind"] = summary.kind;
  json["epoch"] = summary.epoch ? Json(*summary.epoch) : Json();
  json["global_step"] = summary.global_step ? Json(*summary.global_step) : Json();
  json["cause"] = summary.cause.empty() ? Json() : Json(summary.cause);
  json["run_id"] = summary.run_id.empty() ? Json() : Json(summary.run_id);
  json["metrics"] = to_json(summary.metrics);
  return json;
}

std::string metrics_text(const Metrics& metrics) {
  std::vector<std::string> parts;
  for (const auto& [name, value] : metrics) parts.push_back(concat(name, "=", rounded(value)));
  return printable(join(parts, " "));
}

void add_to(Table& table, const Listed& listed) {
  const std::string name = printable(listed.file.path.filename().string());
  const std::string size = human_size(listed.file.size_bytes);
  if (!listed.problem.empty()) return table.add({name, "broken", "-", "-", size, "-", "-", printable(listed.problem)});
  const Summary& summary = listed.summary;
  const auto number = [](const std::optional<int64_t>& value) { return value ? std::to_string(*value) : "-"; };
  const auto text = [](const std::string& value) { return value.empty() ? "-" : printable(value); };
  table.add({name, summary.kind, number(summary.epoch), number(summary.global_step), size, text(summary.cause), text(summary.run_id),
             metrics_text(summary.metrics)});
}

int run(const Arguments& arguments) {
  const std::filesystem::path folder = arguments.folder(0);
  std::vector<Listed> files;
  for (NamedFile& file : named_files(folder, arguments)) files.push_back(open(std::move(file)));
  put_in_order(files);
  if (arguments.has("json")) {
    Json list = Json::array();
    for (const Listed& listed : files) list.push_back(file_to_json(listed));
    print({{"dir", folder.string()}, {"files", std::move(list)}});
  } else if (files.empty()) {
    std::cout << none_in(folder, arguments) << '\n';
  } else {
    Table table({{"file"}, {"kind"}, {"epoch", true}, {"step", true}, {"size", true}, {"cause"}, {"run"}, {"metrics"}});
    for (const Listed& listed : files) add_to(table, listed);
    std::cout << table.text();
  }
  return kGood;
}

}  // namespace

Command ls_command() {
  return {"ls", {"DIR"}, "The checkpoints of a folder, newest first.",
          "The checkpoints of a folder, newest first: by prefix, then by the global step that each says. Kind, epoch and step are\n"
          "those of the states; metrics, cause and run are those of the record. Tensors are not read, so that large files are listed\n"
          "at once: a file that cannot be opened is listed as broken, and `marlin-ckpt verify` finds those with changed bytes.",
          name_flags(), &run};
}

}  // namespace marlin::ckpt
