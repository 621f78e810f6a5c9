#include "bench.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>

#include "marlin/core/version.h"

namespace marlin::bench {

namespace {

std::map<std::string, std::string>& options() {
  static std::map<std::string, std::string> given;
  return given;
}

}  // namespace

std::string option(const std::string& name, const std::string& fallback) {
  const auto at = options().find(name);
  return at == options().end() ? fallback : at->second;
}

void run_interleaved(std::vector<Contender>& contenders, int blocks) {
  for (Contender& contender : contenders) static_cast<void>(contender.block());
  for (int i = 0; i < blocks; ++i) {
    for (Contender& contender : contenders) contender.seconds.push_back(contender.block());
  }
}

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

double median_ratio(const Contender& a, const Contender& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < a.seconds.size(); ++i) ratios.push_back(a.seconds[i] / b.seconds[i]);
  return median(std::move(ratios));
}

void print_machine(const std::string& bench_case, const std::string& details) {
  std::ifstream info("/proc/cpuinfo");
  std::string cpu = "unknown";
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) {
      cpu = line.substr(line.find(':') + 2);
      break;
    }
  }
#ifdef __OPTIMIZE__
  const char* optimised = "yes";
#else
  const char* optimised = "no (these figures mean nothing)";
#endif
  std::printf("# %s cxx=%s optimised=%s torch=%s cpu=\"%s\" threads=%d %s\n", bench_case.c_str(), __VERSION__, optimised, torch_version(), cpu.c_str(), at::get_num_threads(), details.c_str());
}

void print_csv_header(const std::string& unit) { std::printf("case,contender,blocks,median_%s,min_%s,max_%s\n", unit.c_str(), unit.c_str(), unit.c_str()); }

void print_csv(const std::string& bench_case, const Contender& contender, double scale) {
  const auto [low, high] = std::minmax_element(contender.seconds.begin(), contender.seconds.end());
  std::printf("%s,%s,%zu,%.3f,%.3f,%.3f\n", bench_case.c_str(), contender.name.c_str(), contender.seconds.size(), median(contender.seconds) * scale, *low * scale, *high * scale);
}

bool print_bound(const std::string& bench_case, const std::string& what, double measured, double limit) {
  const bool ok = measured <= limit;
  std::printf("bound,%s,%s,%.4f,%.4f,%s\n", bench_case.c_str(), what.c_str(), measured, limit, ok ? "ok" : "short");
  return ok;
}

}  // namespace marlin::bench

int main(int argc, char** argv) {
  using namespace marlin::bench;
  const std::map<std::string, bool (*)()> cases = {{"checkpoint", checkpoint}, {"optimizer", optimizer}, {"overhead", overhead}};
  const auto usage = [&](const std::string& problem) {
    std::fprintf(stderr, "%susage: marlin_bench CASE... [--dir FOLDER]; there are:", problem.c_str());
    for (const auto& [name, run] : cases) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 2;
  };
  std::vector<bool (*)()> chosen;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--dir" && i + 1 < argc) {
      options()["dir"] = argv[++i];
    } else if (const auto found = cases.find(word); found != cases.end()) {
      chosen.push_back(found->second);
    } else {
      return usage("no case '" + word + "'\n");
    }
  }
  if (chosen.empty()) return usage("");
  bool ok = true;
  for (const auto& run : chosen) ok &= run();
  return ok ? 0 : 1;
}
