"""Runs fuzz_archive from the seeds in corpus/ and regressions/, which stay as they are.

    run_fuzz.py FUZZER WORK_FOLDER --runs N               a new corpus, one process, the same seed every time: the same inputs
    run_fuzz.py FUZZER WORK_FOLDER --seconds N [--jobs N] [--coverage PROGRAM]
                                                          goes on from the corpus in WORK_FOLDER; shows the lines it reaches at the end

Exit status: 0 nothing found; 1 an input breaks the reader: it is left in WORK_FOLDER, and how to repeat it is said.
"""
import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The reader may take what a file justifies, and no input is larger than 64 KiB.
LIMITS = ["-max_len=65536", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=5"]
SEEDS = [folder for folder in (HERE / "corpus", HERE / "regressions") if folder.is_dir()]
FOUND = re.compile(r"Test unit written to (\S+)")


def start(arguments, number, seed):
    work = arguments.work
    command = [arguments.fuzzer, *LIMITS, f"-seed={seed}", f"-dict={HERE / 'archive.dict'}", f"-artifact_prefix={work}/", "-print_final_stats=1"]
    command.append(f"-runs={arguments.runs}" if arguments.runs else f"-max_total_time={arguments.seconds}")
    log = work / f"log_{number}.txt"
    with open(log, "w") as stream:
        process = subprocess.Popen([*command, arguments.corpus, *SEEDS], stdout=stream, stderr=subprocess.STDOUT)
    return process, log


def statistic(log, name):
    found = re.search(rf"stat::{name}:\s+(\d+)", log)
    return int(found[1]) if found else 0


def report(log, seed):
    """True: nothing was found."""
    text = log.read_text(errors="replace")
    last = (re.findall(r"cov: \d+ ft: \d+ corp: \S+", text) or ["nothing was run"])[-1]
    print(f"seed {seed}: {statistic(text, 'number_of_executed_units')} inputs, {statistic(text, 'average_exec_per_sec')} a second, "
          f"at most {statistic(text, 'peak_rss_mb')} MiB; {last}")
    return "nothing was run" not in last


def show_failure(log, arguments):
    text = log.read_text(errors="replace")
    first = re.search(r"^(fuzz_archive: |==\d+==\s*ERROR|.*runtime error:|ALARM)", text, re.MULTILINE)
    print("\n".join(text[first.start() if first else -4000:].splitlines()[:60]))
    if artefact := FOUND.search(text):
        print(f"\nfuzz_archive: an input breaks the reader: {artefact[1]}\n"
              f"repeat it:    {arguments.fuzzer} {' '.join(LIMITS)} {artefact[1]}\n"
              f"once mended:  give it a telling name in {os.path.relpath(HERE / 'regressions')}/")
    else:
        print(f"\nfuzz_archive: failed without an input; see {log}")


def tool(name):
    """Debian has it under its version's name."""
    return shutil.which(f"{name}-14") or shutil.which(name)


def show_coverage(arguments):
    """Lines of the reader's own files, by the corpus as it is now."""
    if not (tool("llvm-profdata") and tool("llvm-cov")):
        print("no coverage by file: it needs llvm-profdata and llvm-cov (apt-get install llvm-14)")
        return
    raw, profile = arguments.work / "coverage.profraw", arguments.work / "coverage.profdata"
    subprocess.run([arguments.coverage, "-runs=0", arguments.corpus, *SEEDS], env=os.environ | {"LLVM_PROFILE_FILE": str(raw)}, check=True, capture_output=True)
    subprocess.run([tool("llvm-profdata"), "merge", "-sparse", raw, "-o", profile], check=True)
    export = subprocess.run([tool("llvm-cov"), "export", "-summary-only", f"-instr-profile={profile}", arguments.coverage], check=True, capture_output=True)
    print("lines covered:")
    for file in json.loads(export.stdout)["data"][0]["files"]:
        name, lines = file["filename"].split("/checkpointers/src/"), file["summary"]["lines"]
        if len(name) == 2:
            print(f"{lines['covered']:5} of {lines['count']:5}  {lines['percent']:5.1f} %  {name[1]}")


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1])
    parser.add_argument("fuzzer")
    parser.add_argument("work", type=lambda text: Path(text).resolve())
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--coverage")
    arguments = parser.parse_args()
    if (arguments.runs is None) == (arguments.seconds is None):
        parser.error("either --runs or --seconds is needed")
    if symbolizer := tool("llvm-symbolizer"):
        os.environ.setdefault("ASAN_SYMBOLIZER_PATH", symbolizer)

    arguments.corpus = arguments.work / ("corpus" if arguments.seconds else "test_corpus")
    if arguments.runs:
        shutil.rmtree(arguments.corpus, ignore_errors=True)
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    seeds = [1 if arguments.runs else secrets.randbelow(2**31 - 1) + 1 for _ in range(arguments.jobs)]
    started = [start(arguments, number, seed) for number, seed in enumerate(seeds)]
    try:
        failed = [log for process, log in started if process.wait() != 0]
    except KeyboardInterrupt:  # they have been interrupted, too, and end by themselves
        failed = [log for process, log in started if process.wait() not in (0, 72)]
    sound = [report(log, seed) for (_, log), seed in zip(started, seeds)]
    for log in failed:
        show_failure(log, arguments)
    if arguments.coverage and not failed:
        show_coverage(arguments)
    return 0 if all(sound) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
