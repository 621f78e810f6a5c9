#include "bench.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>

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

int blocks(int usual) { return std::min(usual, std::stoi(option("blocks", std::to_string(usual)))); }

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void require(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error("not so: " + what);
}

void run_interleaved(std::vector<Contender>& contenders, int blocks) {
  for (Contender& contender : contenders) static_cast<void>(contender.block());
  // There and back: nobody always comes right after the same other one, whose caches and warm cores he would find.
  for (int i = 0; i < blocks; ++i) {
    for (size_t k = 0; k < contenders.size(); ++k) {
      Contender& contender = contenders[i % 2 == 0 ? k : contenders.size() - 1 - k];
      contender.seconds.push_back(contender.block());
    }
  }
}

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const double place = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (place - static_cast<double>(below));
}

double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

std::vector<double> ratios(const Contender& a, const Contender& b) {
  std::vector<double> result;
  for (size_t i = 0; i < a.seconds.size(); ++i) result.push_back(a.seconds[i] / b.seconds[i]);
  return result;
}

double median_ratio(const Contender& a, const Contender& b) { return median(ratios(a, b)); }

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

void print_csv_header(const std::string& unit) {
  const char* u = unit.c_str();
  std::printf("case,contender,blocks,median_%s,lower_quartile_%s,upper_quartile_%s,min_%s,max_%s\n", u, u, u, u, u);
}

void print_csv(const std::string& bench_case, const Contender& contender, double scale) {
  std::printf("%s,%s,%zu", bench_case.c_str(), contender.name.c_str(), contender.seconds.size());
  for (const double share : {0.5, 0.25, 0.75, 0.0, 1.0}) std::printf(",%.3f", quantile(contender.seconds, share) * scale);
  std::printf("\n");
}

void print_ratio(const std::string& bench_case, const std::string& what, const Contender& a, const Contender& b) {
  const std::vector<double> values = ratios(a, b);
  std::printf("ratio,%s,%s,%.4f,%.4f,%.4f\n", bench_case.c_str(), what.c_str(), median(values), quantile(values, 0.25), quantile(values, 0.75));
}

namespace {

bool print_judged(const std::string& bench_case, const std::string& what, double measured, double limit, bool ok) {
  std::printf("bound,%s,%s,%.4f,%.4f,%s\n", bench_case.c_str(), what.c_str(), measured, limit, ok ? "ok" : "short");
  return ok;
}

}  // namespace

bool print_bound(const std::string& bench_case, const std::string& what, double measured, double limit) {
  return print_judged(bench_case, what, measured, limit, measured <= limit);
}

bool print_at_least(const std::string& bench_case, const std::string& what, double measured, double limit) {
  return print_judged(bench_case, what + " (at least)", measured, limit, measured >= limit);
}

}  // namespace marlin::bench

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a figure is there to read once it is known, also in a file
  using namespace marlin::bench;
  const std::map<std::string, bool (*)()> cases = {{"checkpoint", checkpoint}, {"ddp", ddp}, {"loader", loader}, {"optimizer", optimizer}, {"overhead", overhead}, {"plugin", plugin}, {"retention", retention}};
  const auto usage = [&](const std::string& problem) {
    std::fprintf(stderr, "%susage: marlin_bench CASE... [--dir FOLDER] [--peers] [--blocks N]; there are:", problem.c_str());
    for (const auto& [name, run] : cases) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 2;
  };
  std::vector<bool (*)()> chosen;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--peers") {
      options()["peers"] = "yes";
    } else if ((word == "--dir" || word == "--blocks") && i + 1 < argc) {
      options()[word.substr(2)] = argv[++i];
    } else if (const auto found = cases.find(word); found != cases.end()) {
      chosen.push_back(found->second);
    } else {
      return usage("no case '" + word + "'\n");
    }
  }
  if (chosen.empty()) return usage("");
  const std::string few = option("blocks", "31");
  if (few.size() > 4 || few.find_first_not_of("0123456789") != std::string::npos || std::stoi("0" + few) < 1) return usage("--blocks: must be a number from 1, got '" + few + "'\n");
  if (std::stoi(few) < 30) std::printf("# so few blocks give a first look only: bounds are judged on 30 or more\n");
  bool ok = true;
  for (const auto& run : chosen) ok &= run();
  return ok ? 0 : 1;
}
