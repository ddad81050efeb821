# Rules, routes and the nftables table around the VPN's bridge. Values stand above; mediahost/render/wall.py wrote them.
#   load   bring all of it about, in an order that opens nothing, and remove what else concerns the bridge
#   check  say what differs; exit status 1 when anything does
# Nothing here takes the wall down.
set -eu
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022
families=4
# absent where the kernel was started without IPv6
[ ! -e /proc/net/if_inet6 ] || families='4 6'
newline='
'

wanted_rules() { # family
  case $1 in 4) printf '%s\n' "$RULES_4" ;; *) printf '%s\n' "$RULES_6" ;; esac
}

present_rules() { # family: those of the bridge, as `wanted_rules` writes them
  ip "-$1" rule show | while read -r priority rule; do
    case "$rule " in *" iif $BRIDGE "*) ;; *) continue ;; esac
    # so ip marks a rule whose interface does not exist yet
    case $rule in *'[detached] '*) rule=${rule%%'[detached] '*}${rule#*'[detached] '} ;; esac
    printf '%s %s\n' "${priority%:}" "$rule"
  done
}

routes() { # family; ip complains of a table that is empty
  ip "-$1" route show table "$TABLE" 2>/dev/null || true
}

strange_routes() { # family
  routes "$1" | while read -r route; do
    case "$route " in
      'unreachable default '*"metric $LAST "*) ;;
      "default dev ${LINK:-none} "*"metric $FIRST "*) ;;
      *) printf '%s\n' "$route" ;;
    esac
  done
}

digest() { sha256sum | while read -r sum _; do printf '%s\n' "$sum"; done; }
# -s: without counters; -t: without the forwarded port, which comes and goes
listing() { nft -st list table inet "$NFT_TABLE" 2>/dev/null || true; }

table_as_loaded() {
  [ -r "$RECORD" ] || return 1
  read -r loaded listed <"$RECORD" || return 1
  [ "$loaded" = "$(digest <"$RULESET")" ] && [ "$listed" = "$(listing | digest)" ]
}

check() {
  different=0
  for family in $families; do
    if [ "$(present_rules "$family")" != "$(wanted_rules "$family")" ]; then
      echo "IPv$family rules of $BRIDGE differ"
      different=1
    fi
    case "$newline$(routes "$family")" in
      *"${newline}unreachable default "*"metric $LAST"*) ;;
      *)
        echo "IPv$family table $TABLE does not end in unreachable"
        different=1
        ;;
    esac
    if [ -n "$(strange_routes "$family")" ]; then
      echo "IPv$family table $TABLE has routes that are not ours"
      different=1
    fi
  done
  if ! table_as_loaded; then
    echo "nftables table $NFT_TABLE is not as it was loaded"
    different=1
  fi
  return $different
}

# A table that is loaded anew keeps the port that the provider forwards now.
forwarded() {
  [ -n "$MAP" ] || return 0
  nft list map inet "$NFT_TABLE" "$MAP" 2>/dev/null | tr -d '\n\t' |
    sed -n "s/.*elements = {\([a-z0-9 .,:]*\)}.*/add element inet $NFT_TABLE $MAP {\1}/p"
  echo
}

load() {
  mkdir -p "${RECORD%/*}"
  exec 9>"$RECORD.lock"
  # one at a time, but for one that hangs
  flock -w 10 9 || true
  for family in $families; do
    # First that nothing leaves, then that everything comes here.
    ip "-$family" route replace unreachable default metric "$LAST" table "$TABLE"
    wanted_rules "$family" | while read -r priority rule; do
      # shellcheck disable=SC2086 # the words of a rule; one that is there already is refused and stays
      ip "-$family" rule add priority "$priority" $rule 2>/dev/null || true
    done
  done
  # One transaction: packets meet the old table or the new one.
  { cat "$RULESET" && forwarded; } | nft -f -
  echo "$(digest <"$RULESET") $(listing | digest)" >"$RECORD.new"
  mv -f "$RECORD.new" "$RECORD"
  for family in $families; do
    before=
    present_rules "$family" | while read -r rule; do
      case "$newline$(wanted_rules "$family")$newline" in
        *"$newline$rule$newline"*) [ "$rule" = "$before" ] || { before=$rule; continue; } ;;
      esac
      # shellcheck disable=SC2086
      ip "-$family" rule del priority "${rule%% *}" ${rule#* } || true
    done
    strange_routes "$family" | while read -r route; do
      # shellcheck disable=SC2086
      ip "-$family" route del $route table "$TABLE" || true
    done
  done
  bridge=/proc/sys/net/ipv6/conf/$BRIDGE/disable_ipv6
  [ ! -e "$bridge" ] || echo 1 >"$bridge"
  check
}

case ${1:-} in
  load) load ;;
  check) check ;;
  *)
    echo "usage: $0 load|check" >&2
    exit 2
    ;;
esac
