# For the scripts beside it: Flower keeps its files here, sends no telemetry, and asks for no updates.
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" <<X
[superlink.fedsb]
address = "@HOST@:@PORT@"
root-certificates = "$PWD/ca.crt"
X
