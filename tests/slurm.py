"""Fake commands of SLURM that run jobs on this machine."""

import stat
import sys
from pathlib import Path

SBATCH = """
import os, re, subprocess, sys
from pathlib import Path

home, script = Path(HOME), Path(sys.argv[1])
text = script.read_text()
tasks = re.search(r"--ntasks-per-node=(\\d+)", text)[1]
last = re.search(r"--array=0-(\\d+)", text)
(home / "jobs").write_text(str(first := int((home / "jobs").read_text()) + 10))
print(f"Submitted batch job {first}")
sys.stdout.flush()
for number in range(int(last[1]) + 1) if last else [None]:
    environment = dict(os.environ, SLURM_JOB_ID=str(first + (number or 0)), SLURM_JOB_NAME="train", SLURM_NNODES="1",
        SLURM_NTASKS=tasks, SLURM_NTASKS_PER_NODE=tasks, SLURM_NODEID="0", SLURM_NODELIST="127.0.0.1",
        SLURM_JOB_NUM_NODES="1", SLURM_JOB_NODELIST="127.0.0.1", SLURM_STEP_ID="0")
    if number is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": str(first), "SLURM_ARRAY_TASK_ID": str(number)}
    subprocess.Popen([sys.executable, home / "job.py", script], env=environment, start_new_session=True,
        stdout=(home / "out").open("a"), stderr=subprocess.STDOUT)
"""
JOB = """
import os, subprocess, sys
from pathlib import Path

for again in range(5):  # until it is not requeued
    wish = Path(HOME) / f"again_{os.environ['SLURM_JOB_ID']}"
    wish.unlink(missing_ok=True)
    subprocess.run(["bash", sys.argv[1]], env=os.environ | {"SLURM_RESTART_COUNT": str(again)})
    if not wish.exists():
        break
(Path(HOME) / f"done_{os.environ['SLURM_JOB_ID']}").touch()
"""
SRUN = """
import os, subprocess, sys, time
from pathlib import Path

home, arguments, files = Path(HOME), sys.argv[1:], {}
while arguments[0].startswith("--"):
    option = arguments.pop(0)
    if option in ("--output", "--error"):
        files[option] = arguments.pop(0)
job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
if "SLURM_ARRAY_TASK_ID" in os.environ:
    job += "_" + os.environ["SLURM_ARRAY_TASK_ID"]
tasks = []
for rank in map(str, range(int(os.environ["SLURM_NTASKS"]))):
    out, err = (open(files[name].replace("%t", rank).replace("%j", job).replace("%A_%a", job), "a") if name in files
        else None for name in ("--output", "--error"))
    environment = os.environ | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    tasks.append(subprocess.Popen(arguments, env=environment, stdout=out, stderr=err))
# The first job reaches its time limit as soon as it has a checkpoint.
if os.environ["SLURM_RESTART_COUNT"] == "0" == os.environ.get("SLURM_ARRAY_TASK_ID", "0"):
    while all(task.poll() is None for task in tasks):
        if (Path(os.environ["SLURM_FAKE_RUN"]) / "checkpoints" / "last.ckpt").exists():
            for task in tasks:
                task.send_signal(int(os.environ["SLURM_FAKE_SIGNAL"]))
            break
        time.sleep(0.05)
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """
import sys
from pathlib import Path

assert sys.argv[1] == "requeue"
main, _, number = sys.argv[2].partition("_")
(Path(HOME) / f"again_{int(main) + int(number or 0)}").touch()
"""
SACCT = """
print("JobID|State|NodeList")
"""


def install(home: Path) -> Path:
    """Write the commands to a folder.

    Returns:
        The folder to be added to PATH.
    """
    folder = home / "bin"
    folder.mkdir(parents=True)
    (home / "jobs").write_text("1200000")
    commands = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "sacct": SACCT}
    for name, text in commands.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{text.replace('HOME', repr(str(home)))}")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    (home / "job.py").write_text(JOB.replace("HOME", repr(str(home))))
    return folder
