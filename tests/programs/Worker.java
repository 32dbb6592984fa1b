/** A program of ours for the JVM: arrays that never change, hashed again and again, and much garbage.
    It prints "ready", works until stdin ends, and prints "ok" and the number of digests, or what is wrong. */

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

public class Worker {
    static volatile boolean done;
    static volatile boolean wrong;
    static final byte[] TEXT = "the plain text of Worker.java is ".concat("known").getBytes();

    static List<byte[]> fill() {
        List<byte[]> blocks = new ArrayList<>();
        for (int number = 0; number < 512; number++) {
            byte[] block = new byte[1 << 18];
            for (int at = 0; at < block.length; at++)
                block[at] = (byte) (at * 31 + number);
            blocks.add(block);
        }
        return blocks;
    }

    static long hashUntilDone(List<byte[]> blocks, int[] expected) {
        long count = 0;
        while (!done) {
            int number = (int) (count++ % blocks.size());
            byte[] copy = blocks.get(number).clone();
            if (Arrays.hashCode(copy) != expected[number])
                wrong = true;
        }
        return count;
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        List<byte[]> blocks = fill();
        int[] expected = blocks.stream().mapToInt(Arrays::hashCode).toArray();
        long[] counts = new long[1];
        Thread hasher = new Thread(() -> counts[0] = hashUntilDone(blocks, expected), "hasher");
        hasher.start();
        System.out.println("ready");
        while (System.in.read() >= 0)
            ;
        done = true;
        hasher.join();
        System.out.println(wrong ? "a digest is wrong" : "ok " + counts[0]);
        System.exit(wrong || TEXT.length == 0 ? 1 : 0);
    }
}
