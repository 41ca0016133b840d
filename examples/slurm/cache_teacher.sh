#!/bin/bash
# Run the teacher over the training data once, on the four GPUs of a node:
#     sbatch examples/slurm/cache_teacher.sh CONFIG CACHE
# A job that was cut off resumes where it was: submit it again. SLURM does so itself after a preemption (--requeue).
#SBATCH --job-name=cache-teacher
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --mem=200G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export OMP_NUM_THREADS=4 NUMBA_NUM_THREADS=4 # of each of the four processes
fairchem-crack cache-teacher --config-yml "$1" --output "$2" --num-gpus 4
