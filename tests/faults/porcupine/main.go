// Command porcupine checks histories of a torch Store for linearizability.
//
// It reads histories from standard input, one JSON object a line, and writes one word a line: ok, illegal, or unknown
// when the check took too long. tests/faults/checker.py says what a history holds.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	maxKeys   = 8
	patience  = 60 * time.Second
	lineBytes = 64 << 20
)

// operation is one call on a store. Keys are numbers below maxKeys, values are text.
type operation struct {
	Client int
	Op     string
	Keys   []int
	Values []string
	Amount int64
	Call   int64
	// Return is 0 when it never returned, or said that its outcome is unknown: then it may take effect at any later time.
	Return int64
	Result []string
}

// state is comparable: porcupine remembers the states that it has seen.
type state struct {
	set    [maxKeys]bool
	value  [maxKeys]string
	queues [maxKeys]string // values, each followed by a newline
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, lineBytes)
	for lines.Scan() {
		var history []operation
		if err := json.Unmarshal(lines.Bytes(), &history); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		fmt.Println(check(history))
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func check(history []operation) string {
	operations := make([]porcupine.Operation, len(history))
	for i, op := range history {
		end := op.Return
		if end == 0 {
			end = math.MaxInt64
		}
		operations[i] = porcupine.Operation{ClientId: op.Client, Input: op, Call: op.Call, Output: op.Result, Return: end}
	}
	model := porcupine.Model{
		Init: func() interface{} { return state{} },
		Step: func(before, input, _ interface{}) (bool, interface{}) {
			op := input.(operation)
			after := before.(state)
			result, possible := apply(&after, op)
			return op.Return == 0 || (possible && equal(result, op.Result)), after
		},
		Hash: hash,
	}
	switch porcupine.CheckOperationsTimeout(model, operations, patience) {
	case porcupine.Ok:
		return "ok"
	case porcupine.Illegal:
		return "illegal"
	default:
		return "unknown"
	}
}

func hash(value interface{}) uint64 {
	s := value.(state)
	sum := fnv.New64a()
	for i := range maxKeys {
		fmt.Fprintf(sum, "%t\x00%s\x00%s\x00", s.set[i], s.value[i], s.queues[i])
	}
	return sum.Sum64()
}

// apply carries out an operation on s; returns its results, and false when it cannot have any (add to what is no number,
// get of what does not exist).
func apply(s *state, op operation) ([]string, bool) {
	put := func(key int, value string) { s.set[key], s.value[key] = true, value }
	switch op.Op {
	case "set", "multi_set":
		for i, key := range op.Keys {
			put(key, op.Values[i])
		}
		return nil, true
	case "get", "multi_get":
		results := []string{}
		for _, key := range op.Keys {
			if !s.set[key] {
				return nil, false
			}
			results = append(results, s.value[key])
		}
		return results, true
	case "check":
		for _, key := range op.Keys {
			if !s.set[key] {
				return []string{"false"}, true
			}
		}
		return []string{"true"}, true
	case "num_keys":
		number := 0
		for _, is := range s.set {
			if is {
				number++
			}
		}
		return []string{strconv.Itoa(number)}, true
	}
	key := op.Keys[0]
	switch op.Op {
	case "add":
		number := int64(0)
		if s.set[key] {
			var err error
			if number, err = strconv.ParseInt(s.value[key], 10, 64); err != nil {
				return nil, false
			}
		}
		put(key, strconv.FormatInt(number+op.Amount, 10))
		return []string{s.value[key]}, true
	case "append":
		put(key, s.value[key]+op.Values[0])
		return nil, true
	case "delete_key":
		was := s.set[key]
		s.set[key], s.value[key] = false, ""
		return []string{strconv.FormatBool(was)}, true
	case "compare_set":
		expected, desired := op.Values[0], op.Values[1]
		if !s.set[key] && expected != "" {
			return []string{expected}, true
		}
		if s.value[key] == expected {
			put(key, desired)
		}
		return []string{s.value[key]}, true
	case "queue_push":
		s.queues[key] += op.Values[0] + "\n"
		return nil, true
	case "queue_pop":
		first, rest, found := strings.Cut(s.queues[key], "\n")
		if !found {
			return []string{"empty"}, true
		}
		s.queues[key] = rest
		return []string{"value", first}, true
	case "queue_len":
		return []string{strconv.Itoa(strings.Count(s.queues[key], "\n"))}, true
	}
	panic("no such operation: " + op.Op)
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
