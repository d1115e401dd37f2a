// Go's etcd concurrency.Mutex, driven line by line by tests/chaos/apps/go_mutex.py: "lock" and "unlock" in; "locked N",
// with the revision as fencing token, "held", "unlocked" or "error ..." out. Ends with its standard input.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const patience = 1500 * time.Millisecond

func serve(endpoints []string, name string, ttl int) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	if err != nil {
		return err
	}
	mutex := concurrency.NewMutex(session, "/chaos/"+name)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		switch in.Text() {
		case "lock":
			err = mutex.TryLock(ctx)
			if err == nil {
				fmt.Println("locked", mutex.Header().Revision)
			} else if errors.Is(err, concurrency.ErrLocked) {
				fmt.Println("held")
			} else {
				fmt.Println("error", err)
			}
		case "unlock":
			if err = mutex.Unlock(ctx); err == nil {
				fmt.Println("unlocked")
			} else {
				fmt.Println("error", err)
			}
		}
		cancel()
	}
	return in.Err()
}

func main() {
	ttl, err := strconv.Atoi(os.Args[3])
	if err == nil {
		err = serve(strings.Split(os.Args[1], ","), os.Args[2], ttl)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
