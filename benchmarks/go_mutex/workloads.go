package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	ttlSeconds     = 30
	holdingCallers = 32
	settle         = 500 * time.Millisecond
)

// The same as benchmarks/peers/workloads.py.
type workloads struct {
	client  *clientv3.Client
	session *concurrency.Session
	lines   int
	held    []*concurrency.Session
}

func (w *workloads) command(line string) (answer, error) {
	var name string
	var first, second int
	count, _ := fmt.Sscanf(line, "%s %d %d", &name, &first, &second)
	switch {
	case name == "run" && count == 2:
		return measured(func() ([]float64, error) { return w.pairs("/bench/go-mutex", first) })
	case name == "many" && count == 3:
		return measured(func() ([]float64, error) { return w.many(first, second) })
	case name == "handoff" && count == 2:
		return w.handOff(first)
	case name == "hold" && count == 2:
		return measured(func() ([]float64, error) { return nil, w.hold(first) })
	}
	return answer{}, fmt.Errorf("not a command: %q", line)
}

func (w *workloads) pairs(name string, pairs int) ([]float64, error) {
	ctx := context.Background()
	times := make([]float64, 0, pairs)
	for i := 0; i < pairs; i++ {
		started := time.Now()
		// A Mutex for each pair, as the other clients make a lock for each.
		mutex := concurrency.NewMutex(w.session, name)
		if err := mutex.Lock(ctx); err != nil {
			return nil, err
		}
		if err := mutex.Unlock(ctx); err != nil {
			return nil, err
		}
		times = append(times, float64(time.Since(started).Nanoseconds())/1e3)
	}
	return times, nil
}

func (w *workloads) many(callers, pairs int) ([]float64, error) {
	var all []float64
	err := together(callers, callers, func(number int, mutex *sync.Mutex) error {
		times, err := w.pairs(fmt.Sprintf("/bench/go-many-%d", number), pairs)
		mutex.Lock()
		all = append(all, times...)
		mutex.Unlock()
		return err
	})
	return all, err
}

// handOff makes a session for each waiter: contenders of one session share a key.
func (w *workloads) handOff(waiters int) (answer, error) {
	ctx := context.Background()
	w.lines++
	name := fmt.Sprintf("/bench/go-line-%d", w.lines)
	sessions, err := w.sessions(waiters)
	if err != nil {
		return answer{}, err
	}
	holder := concurrency.NewMutex(w.session, name)
	if err := holder.Lock(ctx); err != nil {
		return answer{}, err
	}
	var releasedAt time.Time
	var times []float64
	done := make(chan error, 1)
	go func() {
		done <- together(waiters, waiters, func(number int, _ *sync.Mutex) error {
			mutex := concurrency.NewMutex(sessions[number], name)
			if err := mutex.Lock(ctx); err != nil {
				return err
			}
			// Only the owner gets here, so the lock itself guards these.
			times = append(times, float64(time.Since(releasedAt).Nanoseconds())/1e3)
			releasedAt = time.Now()
			return mutex.Unlock(ctx)
		})
	}()
	if err := w.waitUntilInLine(name, int64(waiters+1)); err != nil {
		return answer{}, err
	}
	result, err := measured(func() ([]float64, error) {
		releasedAt = time.Now()
		if err := holder.Unlock(ctx); err != nil {
			return nil, err
		}
		err := <-done
		return times, err
	})
	if err == nil {
		result.Microseconds = result.Microseconds[:(waiters+1)/2]
		err = closeAll(sessions)
	}
	return result, err
}

// hold takes each lock on a session, and so a lease, of its own.
func (w *workloads) hold(locks int) error {
	sessions, err := w.sessions(locks)
	w.held = append(w.held, sessions...)
	if err != nil {
		return err
	}
	return together(locks, holdingCallers, func(number int, _ *sync.Mutex) error {
		mutex := concurrency.NewMutex(sessions[number], fmt.Sprintf("/bench/go-held-%d", number))
		return mutex.Lock(context.Background())
	})
}

func (w *workloads) sessions(count int) ([]*concurrency.Session, error) {
	sessions := make([]*concurrency.Session, count)
	err := together(count, holdingCallers, func(number int, _ *sync.Mutex) error {
		session, err := concurrency.NewSession(w.client, concurrency.WithTTL(ttlSeconds))
		sessions[number] = session
		return err
	})
	return sessions, err
}

func closeAll(sessions []*concurrency.Session) error {
	return together(len(sessions), holdingCallers, func(number int, _ *sync.Mutex) error {
		return sessions[number].Close()
	})
}

func (w *workloads) waitUntilInLine(name string, wanted int64) error {
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		found, err := w.client.Get(context.Background(), name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if found.Count >= wanted {
			time.Sleep(settle)
			return nil
		}
	}
	return fmt.Errorf("%d contenders weren't in line in time", wanted)
}

// together does work 0 to count-1, with so many goroutines, and returns the first error.
func together(count, goroutines int, work func(int, *sync.Mutex) error) error {
	numbers := make(chan int)
	errors := make(chan error, goroutines)
	var mutex sync.Mutex
	for i := 0; i < goroutines; i++ {
		go func() {
			var first error
			for number := range numbers {
				if err := work(number, &mutex); err != nil && first == nil {
					first = err
				}
			}
			errors <- first
		}()
	}
	for number := 0; number < count; number++ {
		numbers <- number
	}
	close(numbers)
	var first error
	for i := 0; i < goroutines; i++ {
		if err := <-errors; err != nil && first == nil {
			first = err
		}
	}
	return first
}
