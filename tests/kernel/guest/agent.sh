#!/bin/dash
# Runs the host's scripts, any number at a time. The channel is a virtio serial port with lines:
#   run ID SECONDS SCRIPT      from the host; SCRIPT in base64
#   ready                      to the host, once
#   done ID STATUS OUTPUT      to the host; the last OUTPUT_LIMIT bytes, in base64
# STATUS is that of the script, 124 or 137 when it took longer than SECONDS.
OUTPUT_LIMIT=65536

find_port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name")" = blockd.agent ]; then
            echo "/dev/${port##*/}"
        fi
    done
}

job() {
    work=/run/job$1
    printf %s "$3" | base64 -d >"$work.sh"
    timeout --kill-after=5 "$2" dash -eu "$work.sh" >"$work.out" 2>&1 </dev/null 3>&- 4>&-
    status=$?
    output=$(tail -c "$OUTPUT_LIMIT" "$work.out" | base64 -w 0)
    rm "$work.sh" "$work.out"
    flock 4
    echo "done $1 $status $output" >&3
}

exec 3<>"$(find_port)" 4>/run/agent.lock
echo ready >&3
while read -r verb id seconds script <&3; do
    if [ "$verb" = run ]; then
        job "$id" "$seconds" "$script" &
    fi
done
