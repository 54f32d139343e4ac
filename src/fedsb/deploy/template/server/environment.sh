# For the scripts beside it: what they write is for their owner's eyes, and Flower keeps its files here, sends no
# telemetry, and asks for no updates.
umask 077
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
mkdir -p "$FLWR_HOME"
