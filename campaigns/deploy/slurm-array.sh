#!/bin/bash
# One campaign on a Slurm cluster: an array job whose tasks each do a shard, then a job that merges them.
#
#     slurm-array.sh CAMPAIGN.toml SHARDS OUT [OPTION…]
#
# Run it on a login node: it submits itself twice with sbatch, the second time to begin when all of the first has succeeded. OUT is a
# directory that all nodes see; OPTIONs go to `quorate campaign`, for example --trials 10000. The nodes need /dev/kvm, the right to
# use it, and `quorate` in PATH. A task that was requeued goes on where its shard was.
#SBATCH --job-name=quorate
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

# On a node, Slurm runs a copy of this script: the word that it was submitted with says which part it is.
case ${1-} in
  --shard)
    campaign=$2 out=$3
    shift 3
    # All shards begin with one golden run: the first to come makes it, the others wait.
    umask 077
    mkdir -p "$out/golden" "$out/shard-$SLURM_ARRAY_TASK_ID"
    ln -sfn ../golden "$out/shard-$SLURM_ARRAY_TASK_ID/golden"
    # The array is 1 to SHARDS, as shards are.
    exec quorate campaign "$campaign" "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
      --jobs "${SLURM_CPUS_PER_TASK:-1}" --resume --out "$out/shard-$SLURM_ARRAY_TASK_ID"
    ;;
  --merge)
    shards=$2 out=$3
    directories=()
    # Named one by one, so that a shard that is missing is an error.
    for ((shard = 1; shard <= shards; shard++)); do
      directories+=("$out/shard-$shard")
    done
    exec quorate campaign merge "${directories[@]}" --out "$out/merged"
    ;;
esac

if [ $# -lt 3 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 CAMPAIGN.toml SHARDS OUT [OPTION...]" >&2
  exit 2
fi
campaign=$(realpath -e "$1") shards=$2 out=$(realpath -m "$3")
shift 3
mkdir -p "$out"
array=$(sbatch --parsable --array="1-$shards" --output="$out/shard-%a.log" "$0" --shard "$campaign" "$out" "$@")
# On a federation the number is followed by the cluster's name.
array=${array%%;*}
merge=$(sbatch --parsable --dependency="afterok:$array" --cpus-per-task=1 --mem=2G --output="$out/merge.log" \
  "$0" --merge "$shards" "$out")
echo "shards: job $array; merge: job ${merge%%;*}; the report will be $out/merged/report.html"
