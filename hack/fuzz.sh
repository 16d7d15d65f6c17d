#!/bin/bash
# Runs every fuzz target for some time, one after the other: `make fuzz FUZZTIME=10m`.
# Prints for each how many inputs it tried and how many were new, and a last line with
# the sums. An input that fails is written below the package's testdata/fuzz, where
# `go test` runs it from then on: mend the cause and keep it.
#   FUZZTIME=10m  for each      FUZZ=Chunk  those whose package and name match      FUZZ_CPUS=1  at a time
set -eu -o pipefail
cd "$(dirname "$0")/.."
go=${GO:-go} tags=${TAGS:-grpcnotrace} time=${FUZZTIME:-1m} only=${FUZZ:-.} cpus=${FUZZ_CPUS:-1}
export CGO_ENABLED=0

log=$(mktemp)
trap 'rm -f "$log"' EXIT
targets=0 failed=0 execs=0 fresh=0
while read -r pkg dir; do
	# Listing compiles, so not where nothing matches.
	(grep -hsoE '^func Fuzz\w+' "$dir"/*_test.go || true) | sed "s|func|$pkg|" | grep -E "$only" >/dev/null || continue
	while read -r name; do
		echo "$pkg $name" | grep -qE "$only" || continue
		targets=$((targets + 1))
		ok=yes
		# Inputs are not made small while it searches: that takes longer than the search.
		"$go" test -tags "$tags" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 20x \
			-parallel "$cpus" "$pkg" >"$log" 2>&1 </dev/null || ok=no
		last=$(grep -E '^fuzz: elapsed: .*execs: ' "$log" | tail -n 1 || true)
		n=$(sed -nE 's/.*execs: ([0-9]+).*/\1/p' <<<"$last")
		new=$(sed -nE 's/.*new interesting: ([0-9]+).*/\1/p' <<<"$last")
		execs=$((execs + ${n:-0})) fresh=$((fresh + ${new:-0}))
		printf '%-36s %-18s %10s inputs, %4s new interesting%s\n' "${pkg##*granary/}" "$name" "${n:-0}" "${new:-0}" \
			"$([ $ok = yes ] || echo '  FAILED')"
		if [ $ok = no ]; then
			failed=$((failed + 1))
			sed 's/^/    /' "$log"
		fi
	done < <("$go" test -tags "$tags" -list '^Fuzz' "$pkg" | grep '^Fuzz' || true)
done < <("$go" list -tags "$tags" -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' ./cmd/... ./pkg/...)
echo "fuzz: $targets targets, $time each, $execs inputs, $fresh new interesting, $failed failed"
[ "$targets" -gt 0 ] && [ "$failed" = 0 ]
