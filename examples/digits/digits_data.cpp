#include "digits_data.h"

#include <marlin/sdk/error.h>
#include <marlin/sdk/text.h>
#include <torch/torch.h>

#include <charconv>
#include <fstream>
#include <vector>

namespace fs = std::filesystem;
using marlin::concat;
using marlin::Errc;
using marlin::Error;

fs::path find_digits(const std::string& given) {
  if (!given.empty()) return given;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& candidate : {program / "digits.csv", program / "../share/marlin/digits.csv", fs::path(DIGITS_SOURCE_DATA)}) {
    if (fs::exists(candidate, error)) return candidate;
  }
  throw Error(Errc::kInvalidArgument, "digits.csv is neither beside the program nor in share/marlin: name it with --module.data");
}

namespace {

constexpr int kColumns = 65;

// The numbers of one line, into `values`.
void read_line(const std::string& line, const std::string& where, std::vector<float>& values) {
  const char* at = line.data();
  const char* end = at + line.size();
  if (end != at && end[-1] == '\r') --end;
  for (int column = 1; column <= kColumns; ++column) {
    float value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc()) throw Error(Errc::kInvalidArgument, concat(where, ": column ", column, " of ", kColumns, " is missing or not a number"));
    const float largest = column == kColumns ? 9.0F : 16.0F;
    if (!(value >= 0 && value <= largest)) throw Error(Errc::kInvalidArgument, concat(where, ": column ", column, " is ", value, ", not between 0 and ", largest));
    values.push_back(value);
    at = next;
    if (column < kColumns && at != end && *at++ != ',') throw Error(Errc::kInvalidArgument, concat(where, ": column ", column, " is not followed by a comma"));
  }
  if (at != end) throw Error(Errc::kInvalidArgument, concat(where, ": more than ", kColumns, " columns"));
}

}  // namespace

DigitsData read_digits(const fs::path& file) {
  std::ifstream stream(file);
  if (!stream || fs::is_directory(file)) throw Error(Errc::kInvalidArgument, concat("cannot read data file ", file.string(), ": give --module.data another"));
  std::vector<float> values;
  std::string line;
  int64_t rows = 0;
  while (std::getline(stream, line)) {
    ++rows;
    read_line(line, concat(file.string(), ":", rows), values);
  }
  if (rows < 10) throw Error(Errc::kInvalidArgument, concat(file.string(), ": holds ", rows, " digits; at least 10 are needed"));
  const at::Tensor table = torch::from_blob(values.data(), {rows, kColumns}, torch::kFloat32);
  return {table.slice(1, 0, kColumns - 1).div(16.0).contiguous(), table.select(1, kColumns - 1).to(torch::kInt64)};
}
