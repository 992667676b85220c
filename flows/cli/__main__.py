from flows import main

main()
