// What all benchmark cases share: the machine line, interleaved blocks, CSV, and bounds.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace marlin::bench {

/// One of the things compared: runs one block and returns what it took, in seconds per unit of work.
struct Contender {
  std::string name;
  std::function<double()> block;
  std::vector<double> seconds = {};   // by block
};

double seconds_of(const std::function<void()>& work);
/// @throws std::runtime_error: what is timed must be right.
void require(bool ok, const std::string& what);

/// Runs one unmeasured block of each, then `blocks` rounds of A B C A B C ...
void run_interleaved(std::vector<Contender>& contenders, int blocks);

[[nodiscard]] double median(std::vector<double> values);
/// Between the ordered values, so 0.25 and 0.75 give the quartiles.
[[nodiscard]] double quantile(std::vector<double> values, double share);
/// a[i] / b[i]: both were measured in the same round, so the machine's moods cancel out.
[[nodiscard]] std::vector<double> ratios(const Contender& a, const Contender& b);
[[nodiscard]] double median_ratio(const Contender& a, const Contender& b);

void print_machine(const std::string& bench_case, const std::string& details);
void print_csv_header(const std::string& unit);
void print_csv(const std::string& bench_case, const Contender& contender, double scale);

/// Prints `ratio,<case>,<what>,<median>,<lower quartile>,<upper quartile>` of a / b.
void print_ratio(const std::string& bench_case, const std::string& what, const Contender& a, const Contender& b);

/// Prints `bound,<case>,<what>,<measured>,<limit>,<ok|short>`. @return whether measured <= limit.
bool print_bound(const std::string& bench_case, const std::string& what, double measured, double limit);
/// The same for a figure that must not be lower than its limit; `what` is printed with ` (at least)`.
bool print_at_least(const std::string& bench_case, const std::string& what, double measured, double limit);

/// What was given as `--name value`, or `fallback`.
[[nodiscard]] std::string option(const std::string& name, const std::string& fallback);
/// How many rounds to measure: `usual`, or fewer with `--blocks`.
[[nodiscard]] int blocks(int usual);

/// The cases. @return whether every bound holds.
bool checkpoint();
bool ddp();
bool loader();
bool overhead();
bool optimizer();
bool plugin();
bool retention();

}  // namespace marlin::bench
