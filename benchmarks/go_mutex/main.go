// Times lock+unlock of go.etcd.io/etcd/client/v3/concurrency.Mutex for benchmarks/clients.py, over its line protocol:
// "run N" in, one line of JSON out, until standard input ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

type answer struct {
	Microseconds    []float64 `json:"microseconds"`
	CPUMicroseconds float64   `json:"cpu_microseconds"`
}

func cpuMicroseconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e3
}

func clientVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "go.etcd.io/etcd/client/v3" {
				return module.Version
			}
		}
	}
	return "unknown"
}

func run(session *concurrency.Session, pairs int) (answer, error) {
	ctx := context.Background()
	times := make([]float64, 0, pairs)
	cpuBefore := cpuMicroseconds()
	for i := 0; i < pairs; i++ {
		started := time.Now()
		// A Mutex for each pair, as the other clients make a lock for each.
		mutex := concurrency.NewMutex(session, "/bench/go-mutex")
		if err := mutex.Lock(ctx); err != nil {
			return answer{}, err
		}
		if err := mutex.Unlock(ctx); err != nil {
			return answer{}, err
		}
		times = append(times, float64(time.Since(started).Nanoseconds())/1e3)
	}
	return answer{Microseconds: times, CPUMicroseconds: cpuMicroseconds() - cpuBefore}, nil
}

func serve(endpoint string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
	if err != nil {
		return err
	}
	defer session.Close()
	out := json.NewEncoder(os.Stdout)
	versions := fmt.Sprintf("client/v3 %s, %s", clientVersion(), runtime.Version())
	if err := out.Encode(map[string]string{"ready": versions}); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var pairs int
		if _, err := fmt.Sscanf(in.Text(), "run %d", &pairs); err != nil {
			return fmt.Errorf("not a command: %q", in.Text())
		}
		result, err := run(session, pairs)
		if err != nil {
			return err
		}
		if err := out.Encode(result); err != nil {
			return err
		}
	}
	return in.Err()
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go_mutex HOST:PORT")
		os.Exit(2)
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "go_mutex:", err)
		os.Exit(1)
	}
}
