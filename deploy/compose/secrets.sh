#!/bin/sh
# Makes the secrets of compose.yaml, in secrets/ beside this file. Those that are there stay.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
cd secrets

make() {
  [ -s "$1" ] || "$2" >"$1"
}
random() {
  openssl rand -hex 32
}
# What 'fcp keys create' writes: the deployment's id, and a key with its own.
keys() {
  printf 'deployment %s\n01 %s\n' "$(openssl rand -hex 16)" "$(openssl rand -hex 32)"
}
pgpass() {
  printf '*:*:*:*:%s\n' "$(cat db-password)"
}

make admin-token random
make db-password random
make grafana-password random
make pgpass pgpass
make token-keys keys
# Files become secrets with the owner and the mode that they have here: the server is user 10001, Grafana
# is 472, and PostgreSQL reads its own as root.
if [ "$(id -u)" = 0 ]; then
  chown 10001:10001 admin-token pgpass token-keys
  chown 472:472 grafana-password
else
  echo "secrets.sh: run as root, or give admin-token, pgpass and token-keys to user 10001" \
    "and grafana-password to 472: containers could not read them" >&2
fi
