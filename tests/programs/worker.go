// A program of ours in Go: blocks that never change, hashed again and again by goroutines, and much garbage.
// It prints "ready", works until stdin ends, and prints "ok" and the number of digests, or what is wrong.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

var text = []byte(strings.Join([]string{"the plain text of worker.go is", "known"}, " "))
var done, wrong, count int64

func hashUntilDone(blocks [][]byte, expected [][32]byte, from int, group *sync.WaitGroup) {
	defer group.Done()
	for number := from; atomic.LoadInt64(&done) == 0; number++ {
		copied := append([]byte{}, blocks[number%len(blocks)]...)
		if sha256.Sum256(copied) != expected[number%len(blocks)] {
			atomic.StoreInt64(&wrong, 1)
		}
		atomic.AddInt64(&count, 1)
	}
}

func main() {
	blocks := make([][]byte, 128)
	expected := make([][32]byte, len(blocks))
	for number := range blocks {
		blocks[number] = make([]byte, 1<<20)
		for at := range blocks[number] {
			blocks[number][at] = byte(at*31 + number)
		}
		copy(blocks[number], text)
		expected[number] = sha256.Sum256(blocks[number])
	}
	var group sync.WaitGroup
	for from := 0; from < 8; from++ {
		group.Add(1)
		go hashUntilDone(blocks, expected, from, &group)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	atomic.StoreInt64(&done, 1)
	group.Wait()
	if wrong != 0 {
		fmt.Println("a digest is wrong")
		os.Exit(1)
	}
	fmt.Println("ok", count)
}
