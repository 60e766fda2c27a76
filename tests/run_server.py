"""Real runs of scripts/pretrain.py and scripts/finetune.py, started in milliseconds: a server process imports
everything once and forks a process for each run.

Each run of pretrain.py also records what its stream yields (`record`): one JSON line with the position it starts from,
then one for each batch. A run that resumes at a position takes back the batches after it, so `samples_seen` is what the
steps that count have seen. Each of several processes writes `rank-N.exchanges` beside it: for each pass through the
model whether gradients will be exchanged.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

SCRIPTS = Path(__file__).parents[1] / "scripts"
# What `accelerate launch --use_fsdp --fsdp_version 2` sets, and a CPU in place of a GPU: Accelerate shards on GPUs
# alone, so `live` also makes it take the processes for such.
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "ACCELERATE_USE_CPU": "false",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}


# ---------------------------------------------------------------------------------------------------------- test's side


class Run:
    """One process of a run, its log and its record."""

    def __init__(self, server: RunServer, pid: int, log: Path, record: Path):
        self.server, self.pid, self.log, self.record = server, pid, log, record

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)  # the server reaps only in `wait`, so that the id cannot have gone to another process

    def wait(self, timeout: float) -> int | None:
        """Exit code, negative for a signal; None if it still runs after `timeout` seconds."""
        return self.server.ask({"wait": self.pid, "timeout": timeout})["code"]

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def num_batches(self) -> int:
        """Batches that this process has taken from its stream so far; -1 before it has a stream."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        starts = [index for index, line in enumerate(lines) if '"start"' in line]
        return len(lines) - 1 - starts[-1] if starts and len(starts) > self._starts_before else -1

    _starts_before = 0


class RunServer:
    """Starts runs and waits for them."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also if the tests run under nohup
        )

    def ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server of runs has died"
        return json.loads(answer)

    def start(
        self,
        argv: list[str],
        record: Path,
        num_processes: int = 1,
        stall: str | None = None,
        script: str = "pretrain",
        environment: dict[str, str] | None = None,
    ) -> list[Run]:
        """Start a run of one or several processes; `record` is a folder that all lives of a run share.

        `environment`: further variables, such as `SHARDED`.
        `stall`: say "stalled" and wait forever, before the batch of this number, or instead of writing a "checkpoint".
        """
        record.mkdir(parents=True, exist_ok=True)
        common = environment or {}
        if num_processes > 1:
            common = common | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
                "WORLD_SIZE": str(num_processes),
            }
        runs = []
        for rank in range(num_processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
            file, log = record / f"rank-{rank}.jsonl", record / f"rank-{rank}.log"
            starts_before = file.read_text().count('"start"') if file.exists() else 0
            request = {
                "argv": argv,
                "environment": common | ranks,
                "log": str(log),
                "record": str(file),
                "stall": stall,
                "script": script,
            }
            log.touch()
            run = Run(self, self.ask(request)["pid"], log, file)
            run._starts_before = starts_before
            runs.append(run)
        return runs

    def run(
        self,
        argv: list[str],
        record: Path,
        num_processes: int = 1,
        timeout: float = 900,
        script: str = "pretrain",
        environment: dict[str, str] | None = None,
    ) -> list[Run]:
        """Start a run and see it through to exit code 0."""
        runs = self.start(argv, record, num_processes, script=script, environment=environment)
        for run in runs:
            code = run.wait(timeout)
            assert code == 0, f"exit code {code}\n{run.output()[-3000:]}"
        return runs

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=900)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def samples_seen(record: Path, rank: int = 0) -> list[list[tuple[int, int]]]:
    """[(epoch, key), ...] of each batch that counts, in order, over all lives of a run."""
    batches: list[dict] = []
    for line in (record / f"rank-{rank}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "start" in entry:
            positions = [None, *(batch["position"] for batch in batches)]
            kept = 0 if not batches or entry["start"]["num_seen"] == 0 else positions.index(entry["start"])
            batches = batches[:kept]
        else:
            batches.append(entry)
    return [[(epoch, key) for epoch, key in batch["samples"]] for batch in batches]


# -------------------------------------------------------------------------------------------------------- server's side


def serve() -> None:
    """Handle requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the test's terminal; the test closes the input
    import datasets  # noqa: F401

    pretrain = importlib.import_module("eqcohvit.training.pretrain")
    importlib.import_module("eqcohvit.commands.pretrain")
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": wait(request["wait"], request["timeout"])}
            if answer["code"] is not None:
                children.discard(request["wait"])
        else:
            pid = os.fork()
            if pid == 0:
                live(pretrain, request)
            children.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in children:  # what a failed test has left
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait(pid: int, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def live(pretrain, request: dict) -> NoReturn:
    """In the forked process: the run itself, as from the command line."""
    os.setsid()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((0, os.devnull), (1, request["log"]), (2, request["log"])):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)

    from eqcohvit.training.signals import leave

    if "FSDP_VERSION" in request["environment"]:
        from accelerate.state import DistributedType, PartialState

        PartialState._prepare_backend = lambda *_arguments: ("gloo", DistributedType.MULTI_GPU)

    command = importlib.import_module(f"eqcohvit.commands.{request['script']}")
    if request["script"] != "pretrain":
        leave(command.cli(request["argv"]))

    def stall(*_arguments) -> None:
        print("stalled", flush=True)
        while True:
            time.sleep(3600)

    class RecordedStream(pretrain.CanvasStream):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.write({"start": self.position})

        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if str(number) == request["stall"]:
                    stall()
                samples = list(zip(batch.epochs.tolist(), batch.keys.tolist(), strict=True))
                self.write({"position": batch.position, "samples": samples})
                yield batch

        def write(self, entry: dict) -> None:
            with open(request["record"], "a") as file:
                file.write(json.dumps(entry) + "\n")

    class RecordedParallel(pretrain.torch.nn.parallel.DistributedDataParallel):
        """Notes of each forward pass whether its backward pass will exchange gradients."""

        def forward(self, *arguments, **options):
            with open(request["record"].replace(".jsonl", ".exchanges"), "a") as file:
                file.write(json.dumps(self.require_backward_grad_sync) + "\n")
            return super().forward(*arguments, **options)

    pretrain.CanvasStream = RecordedStream
    pretrain.torch.nn.parallel.DistributedDataParallel = RecordedParallel
    if request["stall"] == "checkpoint":
        importlib.import_module("eqcohvit.training.run").save_checkpoint = stall
    leave(command.cli(request["argv"]))


if __name__ == "__main__":
    serve()
