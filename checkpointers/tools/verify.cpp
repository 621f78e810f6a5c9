// marlin-ckpt verify FILE|DIR
#include <iostream>
#include <system_error>

#include "commands.h"
#include "folder.h"
#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/json.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  fs::path file;
  const char* status = "ok";
  std::string text;  // a note or a reason
  bool hashes = false;  // compared, and not just the checksums
  bool good = true;
};

Outcome verify(const fs::path& file) {
  try {
    const ArchiveReader reader(file, Verify::kFull);
    if (reader.verified() == Verified::kHashes) {
      return {file, "ok", concat(reader.record()->records.size() + 1, " records match their hashes (XXH3-128)"), true};
    }
    return {file, "ok", concat(reader.record() ? "a record without hashes" : "no record", ": only checksums (CRC-32) could be compared")};
  } catch (const Error& error) {
    const char* status = error.code() == Errc::kUnsupported ? "unsupported" : error.code() == Errc::kCorrupt ? "broken" : "unreadable";
    return {file, status, reason(file, error.what()), false, false};
  }
}

int run(const Arguments& arguments) {
  const fs::path path = arguments.word(0);
  std::error_code error;
  const bool is_folder = fs::is_directory(path, error);
  std::vector<fs::path> files;
  if (is_folder) {
    for (const NamedFile& file : named_files(path, arguments)) files.push_back(file.path);
  } else {
    files.push_back(arguments.file(0));
    if (arguments.has("prefix") || arguments.has("ext")) throw Error(Errc::kInvalidArgument, "--prefix and --ext choose files of a folder");
  }
  Table table({{""}, {""}, {""}});
  Json list = Json::array();
  bool good = true;
  for (const fs::path& file : files) {
    const Outcome outcome = verify(file);
    good = good && outcome.good;
    const std::string name = is_folder ? file.filename().string() : file.string();
    table.add({printable(name), outcome.status, printable(outcome.text)});
    list.push_back({{"file", name},
                    {"status", outcome.status},
                    {"hashes", outcome.hashes},
                    {outcome.good ? "note" : "problem", outcome.text}});
  }
  if (arguments.has("json")) {
    print({{"whole", good}, {"files", std::move(list)}});
  } else {
    std::cout << (files.empty() ? none_in(path, arguments) + "\n" : table.text());
  }
  return good ? kGood : kBad;
}

}  // namespace

Command verify_command() {
  return {"verify", {"FILE|DIR"}, "Whether all bytes are those that were written.",
          "Reads all of a file, or of every checkpoint of a folder, and compares each record with its hash in the commit record. A file\n"
          "without one, as Python writes them, has its checksums compared, and a note says so. Exit code 1 if any is broken, cut short,\n"
          "unreadable or no checkpoint.",
          name_flags(), &run};
}

}  // namespace marlin::ckpt
