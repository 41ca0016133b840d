#!/bin/bash
# Fill the teacher cache, then train on two nodes with four GPUs each. On the login node, in the environment of the jobs and
# from the repository's root:
#     bash examples/slurm/train.sh
# Edit the partition here and in cache_teacher.sh, and the paths of the data in the YAML. fairchem submits the training itself;
# its logs are in logs/. A job that SLURM preempts is queued again and resumes; after the time limit, too, three times.
set -euo pipefail

config=configs/oc20/s2ef/2M/painn_from_eqV2-31M.yml
cache=caches/eqV2-31M-2M

job=$(sbatch --parsable examples/slurm/cache_teacher.sh "$config" "$cache")
fairchem --mode train --config-yml "$config" --task.distill.teacher.cache="$cache" --timestamp-id painn-31M \
  --submit --num-nodes 2 --num-gpus 4 --slurm-partition gpu --slurm-timeout 24 --slurm-mem 200 \
  --slurm.dependency=afterok:"$job"
