/* Stands for a program of a user's own: it greets each of its arguments. */
#include <stdio.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        printf("hello, %s\n", argv[i]);
    return fflush(stdout) != 0;
}
