package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func main() {
	runtime.GOMAXPROCS(max(16, runtime.NumCPU()))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	n, down, err := Start(ctx, Options{DataDir: os.Args[1], API: "127.0.0.1:7780", NBD: "127.0.0.1:10809", ISCSI: "127.0.0.1:3260", Logger: slog.Default(), Progress: func(s string) { fmt.Println(s) }})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("token", n.dir.fresh, n.api.addr)
	<-ctx.Done()
	down()
}
