# Brings the tunnel up and watches over it, the wall, and the wall inside each confined container: what is gone is
# mended at once when the kernel tells of it, within $POLL seconds else. Values stand above; mediahost/render/wall.py
# wrote them.
#   watch   for ever (the service)
#   settle  once, whatever it finds (its reload): new settings reach the living interface
# Bash, because `read` of POSIX has no timeout. Nothing here takes the interface or the wall down.
set -u
shopt -s nullglob
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 077

addresses() { # of the interface, from what `ip address show` printed on stdin
  local word value found=
  while read -r word value _; do
    [[ $word != inet ]] || found+="$value "
  done
  printf '%s' "${found% }"
}

tunnel_sound() {
  local state endpoint handshake
  state=$(ip address show dev "$LINK" 2>/dev/null) || return 1
  [[ $state == *[\<,]UP[,\>]*" mtu $MTU "* ]] || return 1
  [[ $(addresses <<<"$state") == "$ADDRESSES" ]] || return 1
  [[ $(ip -4 route show table "$TABLE" 2>/dev/null) == *"default dev $LINK "*"metric $FIRST"* ]] || return 1
  # public key and address only
  endpoint=$(wg show "$LINK" endpoints)
  [[ $endpoint != "$PEER"$'\t'"$ENDPOINT" ]] || return 0
  # A server that has moved and still talks to us is followed, as WireGuard does: a session lasts three minutes.
  [[ $endpoint == "$PEER"$'\t'* ]] || return 1
  handshake=$(wg show "$LINK" latest-handshakes)
  (($(printf '%(%s)T' -1) - ${handshake##*$'\t'} < 180))
}

raise_tunnel() {
  local address
  if ! ip link show dev "$LINK" >/dev/null 2>&1; then
    ip link add "$LINK" type wireguard || {
      echo "$LINK cannot be made: this kernel has no WireGuard" >&2
      return 1
    }
  fi
  # Changes only what differs: a handshake with the same peer goes on.
  wg syncconf "$LINK" "$CONFIGURATION" || return 1
  if [[ $(ip -4 address show dev "$LINK" | addresses) != "$ADDRESSES" ]]; then
    ip -4 address flush dev "$LINK"
    for address in $ADDRESSES; do ip -4 address add "$address" dev "$LINK" || return 1; done
  fi
  # Answers come in here that main would send elsewhere: a strict reverse path check would drop all of them.
  echo 2 >"/proc/sys/net/ipv4/conf/$LINK/rp_filter" || return 1
  ip link set dev "$LINK" mtu "$MTU" up || return 1
  ip -4 route replace default dev "$LINK" metric "$FIRST" table "$TABLE"
}

# --- the wall inside: in each network namespace that has an address of the tunnel's network

declare -A walled=() # those known to have it, by their file's name
complete=            # the bridge's ports when each was seen to lead into one of those

internal() { # the internal network's block; while there is none, the block that is allowed anyway
  local block
  read -r block _ < <(ip -4 route show dev "$INSIDE_BRIDGE" proto kernel 2>/dev/null)
  printf '%s' "${block:-$SUBNET}"
}

is_confined() { # file
  local address
  # Of containers with the host's own network Docker has a file too. The host must never be walled in.
  [[ ! $1 -ef /proc/self/ns/net ]] || return 1
  address=$(nsenter --net="$1" ip -4 -o address show to "$SUBNET" 2>/dev/null)
  [[ -n $address && $address != *" $BRIDGE "* ]]
}

listed_inside() { # file; -s: without counters
  local sum
  read -r sum _ < <(nsenter --net="$1" nft -st list table inet "$INSIDE_TABLE" 2>/dev/null | sha256sum)
  printf '%s' "$sum"
}

wall_inside() { # file, digest of the ruleset, internal block
  local loaded='' listed='' block='' record=$INSIDE_RECORD.$BASHPID
  [[ ! -r $INSIDE_RECORD ]] || read -r loaded listed block <"$INSIDE_RECORD"
  if [[ "$loaded $block" == "$2 $3" && $(listed_inside "$1") == "$listed" ]]; then return 0; fi
  nsenter --net="$1" nft -D internal="$3" -f "$INSIDE" || return 1
  echo "the wall inside ${1##*/} is loaded"
  echo "$2 $(listed_inside "$1") $3" >"$record" && mv -f "$record" "$INSIDE_RECORD"
}

inside() { # "all": those that have it are looked at, too; "new": nothing to do costs no process
  local file name ruleset block found=0 result=0
  local files=() known=() ports=("/sys/class/net/$BRIDGE/brif"/*)
  if [[ ${ports[*]} != "$complete" ]]; then
    for file in "$NAMESPACES"/*; do
      # New ones first, every moment counts.
      if [[ -v walled[${file##*/}] ]]; then known+=("$file"); else files+=("$file"); fi
    done
    files+=("${known[@]}")
  else
    [[ $1 == all ]] || return 0
    for name in "${!walled[@]}"; do files+=("$NAMESPACES/$name"); done
  fi
  ((${#files[@]})) || return 0
  mkdir -p "${INSIDE_RECORD%/*}"
  read -r ruleset _ < <(sha256sum "$INSIDE")
  block=$(internal)
  for file in "${files[@]}"; do
    name=${file##*/}
    if is_confined "$file"; then
      ((++found))
    elif [[ ! -v walled[$name] ]] || ! nsenter --net="$file" true 2>/dev/null; then
      # Not ours, or gone: Docker leaves an empty file for a while.
      unset "walled[$name]"
      continue
    fi
    if wall_inside "$file" "$ruleset" "$block"; then walled[$name]=1; else result=1; fi
  done
  # A port whose namespace has no address yet will have one in a moment.
  if ((found >= ${#ports[@]})); then complete=${ports[*]}; else complete=; fi
  return $result
}

settle() ( # "always" or "" - one at a time (the service and whoever reloads it), but for one that hangs
  mkdir -p "${LOCK%/*}" && exec 9>"$LOCK" && flock -w 10 9
  result=0
  if ! found=$("$WALL" check); then
    echo "the wall is mended: ${found//$'\n'/; }"
    "$WALL" load || result=1
  fi
  if [[ -n $LINK ]] && { [[ $1 == always ]] || ! tunnel_sound; }; then
    echo "$LINK is brought up with its settings"
    raise_tunnel || result=1
  fi
  exit $result
)

watch() {
  local status
  exec 3< <(exec ip monitor link route rule)
  while :; do
    # First: a new container's first process starts in a moment.
    inside new
    settle ''
    inside all
    status=0
    read -r -t "$POLL" -u 3 _ || status=$?
    if ((status == 0)); then
      # What happens together is looked at once, but for new containers.
      inside new
      SECONDS=0
      while ((SECONDS < 1)) && read -r -t 0.2 -u 3 _; do inside new; done
    elif ((status <= 128)); then
      echo 'ip monitor has ended' >&2
      exit 1
    fi
  done
}

case ${1:-watch} in
  watch) watch ;;
  settle)
    settle always
    result=$?
    inside all || result=1
    exit $result
    ;;
  *)
    echo "usage: $0 [watch|settle]" >&2
    exit 2
    ;;
esac
