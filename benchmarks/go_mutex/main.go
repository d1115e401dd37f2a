// Drives go.etcd.io/etcd/client/v3/concurrency.Mutex for benchmarks/clients.py, over peers/line_protocol.py: a command
// in, one line of JSON out, until standard input ends. The commands are in workloads.go.
package main

import (
	"bufio"
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
	Seconds         float64   `json:"seconds"`
	CPUMicroseconds float64   `json:"cpu_microseconds"`
}

// measured times work, which returns the microseconds of its parts.
func measured(work func() ([]float64, error)) (answer, error) {
	started, cpuBefore := time.Now(), cpuMicroseconds()
	microseconds, err := work()
	return answer{microseconds, time.Since(started).Seconds(), cpuMicroseconds() - cpuBefore}, err
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

func serve(endpoint string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttlSeconds))
	if err != nil {
		return err
	}
	defer session.Close()
	out := json.NewEncoder(os.Stdout)
	versions := fmt.Sprintf("client/v3 %s, %s", clientVersion(), runtime.Version())
	if err := out.Encode(map[string]string{"ready": versions}); err != nil {
		return err
	}
	work := workloads{client: client, session: session}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		result, err := work.command(in.Text())
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
